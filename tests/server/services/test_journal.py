"""The journal: what waits is bounded, what is refused is tried again, nothing is lost silently."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefect_mipro.errors import CandidateNotFound, Overloaded, SessionNotFound, StoreFailed
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from tests.server.store.records import BASELINE, create, rollout, trace


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mipro.db"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{file}")
    await create(opened)
    yield opened
    await opened.close()


@contextmanager
def refusing(file: Path, table: str) -> Iterator[None]:
    """Let nothing be written to a table meanwhile."""
    other = sqlite3.connect(file)
    other.execute(f"ALTER TABLE {table} RENAME TO away")
    try:
        yield
    finally:
        other.execute(f"ALTER TABLE away RENAME TO {table}")
        other.close()


@contextmanager
def under_way(journal: Journal) -> Iterator[None]:
    """One more call."""
    journal.begin_call()
    try:
        yield
    finally:
        journal.end_call()


def recorded(number: int, rollout_id: str = "r", candidate_id: str = BASELINE) -> CallRecord:
    return CallRecord(
        trace(f"t{number}", rollout_id, candidate_id=candidate_id),
    )


async def calls_of(store: Store) -> int:
    return (await store.candidate(BASELINE)).statistics.calls


async def test_pins_that_come_at_once_are_all_answered(store: Store) -> None:
    journal = Journal(store)
    pinned = await asyncio.gather(*(journal.pin(rollout(f"r{n}")) for n in range(100)))
    assert [r.position for r in pinned] == list(range(1, 101))
    await journal.close()


async def test_a_pin_that_fails_is_no_reason_for_others_to_fail(store: Store) -> None:
    journal = Journal(store)
    outcomes = await asyncio.gather(
        *(journal.pin(rollout(f"r{n}", "cand_9" if n == 3 else BASELINE)) for n in range(8)),
        return_exceptions=True,
    )
    assert isinstance(outcomes.pop(3), CandidateNotFound)
    assert all(not isinstance(outcome, BaseException) for outcome in outcomes)
    assert (await store.candidate(BASELINE)).statistics.rollouts == 7
    await journal.close()


async def test_a_pin_that_the_store_refuses_is_its_calls_error(store: Store, file: Path) -> None:
    journal = Journal(store)
    with refusing(file, "mipro_rollouts"), pytest.raises(StoreFailed):
        await journal.pin(rollout())
    assert (await journal.pin(rollout())).position == 1
    await journal.close()


async def test_models_are_asked_beside_the_pins_once_the_store_has_taken_some(
    store: Store, file: Path
) -> None:
    journal = Journal(store, trusted_after_seconds=0)
    assert journal.pins_first
    await journal.pin(rollout("r1"))
    assert not journal.pins_first
    with refusing(file, "mipro_rollouts"), pytest.raises(StoreFailed) as refused:
        await journal.pin(rollout("r2"))
    assert refused.value.retry_after_seconds
    assert journal.pins_first
    await journal.pin(rollout("r2"))
    assert not journal.pins_first
    await journal.close()


async def test_a_store_that_refused_something_is_not_trusted_at_once(
    store: Store, file: Path
) -> None:
    journal = Journal(store, delay_seconds=0.001, retry_seconds=0.001)
    await journal.pin(rollout("r1"))
    with refusing(file, "mipro_traces"):
        journal.record(recorded(1, "r1"), size_bytes=1)
        await journal.flush()
    await journal.pin(rollout("r2"))
    assert journal.pins_first
    await journal.close()


async def test_while_pins_fail_and_take_long_calls_are_refused_at_once(
    store: Store, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(store, slow_pins_seconds=0)
    with caplog.at_level(logging.INFO):
        with refusing(file, "mipro_rollouts"):
            with pytest.raises(StoreFailed):
                await journal.pin(rollout())
            journal.require_pins()
            with locked(file):
                trying = journal.pin(rollout())
                await until_under_way(journal, store)
                with pytest.raises(StoreFailed, match="mipro_rollouts") as refused:
                    journal.require_pins()
            with pytest.raises(StoreFailed):
                await trying
        await journal.pin(rollout())
    journal.require_pins()
    assert refused.value.retry_after_seconds
    assert journal.counts.refused == 1
    told = [record.message for record in caplog.records]
    assert told == ["pins_refused", "pins_taken_again"]
    await journal.close()


async def test_pins_that_take_long_are_waited_for_and_then_refused(
    store: Store, file: Path
) -> None:
    journal = Journal(store, trusted_after_seconds=0, slow_pins_seconds=0, longest_pins_seconds=0)
    await journal.pin(rollout("r1"))
    assert not journal.pins_first
    journal.require_pins()
    with locked(file):
        slow = journal.pin(rollout("r2"))
        await until_under_way(journal, store)
        with pytest.raises(StoreFailed, match="whether its disk hangs"):
            journal.require_pins()
    assert (await slow).position == 2
    await journal.close()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the write lock of the database meanwhile."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def until_under_way(journal: Journal, store: Store) -> None:
    """Until a transaction of pins has taken some time."""
    async with asyncio.timeout(20):
        while not journal.pinning_seconds:
            await calls_of(store)


async def test_a_recording_is_written_without_being_waited_for(store: Store) -> None:
    journal = Journal(store, delay_seconds=0.001)
    await journal.pin(rollout("r"))
    journal.record(recorded(1), size_bytes=1)
    assert journal.waiting == 1
    async with asyncio.timeout(20):
        while not await calls_of(store):
            pass
    assert journal.counts.written == 1
    await journal.close()


async def test_who_is_about_to_read_has_all_written(store: Store) -> None:
    journal = Journal(store, delay_seconds=1_000)
    await journal.pin(rollout("r"))
    for number in range(150):
        journal.record(recorded(number), size_bytes=1)
    await journal.flush()
    assert (await calls_of(store), journal.waiting) == (150, 0)
    await journal.close()


async def test_closing_writes_all(store: Store) -> None:
    journal = Journal(store, delay_seconds=1_000)
    await journal.pin(rollout("r"))
    for number in range(70):
        journal.record(recorded(number), size_bytes=1)
    await journal.close()
    assert (await calls_of(store), journal.counts.written) == (70, 70)


async def test_what_the_store_refuses_is_written_later(store: Store, file: Path) -> None:
    journal = Journal(store, delay_seconds=0.001, retry_seconds=0.001)
    await journal.pin(rollout("r"))
    with refusing(file, "mipro_traces"):
        journal.record(recorded(1), size_bytes=1)
        await journal.flush()
        assert journal.waiting == 1
        assert journal.counts.failures >= 1
        # Serving goes on meanwhile.
        assert (await journal.pin(rollout("other"))).position == 2
    async with asyncio.timeout(20):
        while journal.waiting:
            await journal.flush()
    assert (await calls_of(store), journal.counts.lost) == (1, 0)
    await journal.close()


async def test_a_full_journal_takes_no_calls_until_it_is_written(store: Store, file: Path) -> None:
    journal = Journal(store, delay_seconds=0.001, retry_seconds=0.001, most_recordings=3)
    await journal.pin(rollout("r"))
    with refusing(file, "mipro_traces"):
        for number in range(3):
            with under_way(journal):
                journal.record(recorded(number), size_bytes=1)
        with pytest.raises(Overloaded, match="3 calls behind") as refused, under_way(journal):
            pass
        assert refused.value.status == 429
        assert refused.value.retry_after_seconds
    async with asyncio.timeout(20):
        while journal.waiting:
            await journal.flush()
    with under_way(journal):
        pass
    await journal.close()
    assert await calls_of(store) == 3


async def test_large_recordings_fill_the_journal_sooner(store: Store) -> None:
    journal = Journal(store, delay_seconds=1_000, most_bytes=1_000)
    await journal.pin(rollout("r"))
    journal.record(recorded(1), size_bytes=1_000)
    with pytest.raises(Overloaded), under_way(journal):
        pass
    await journal.flush()
    with under_way(journal):
        pass
    await journal.close()


async def test_no_more_calls_are_under_way_than_allowed(store: Store) -> None:
    journal = Journal(store, most_calls_in_flight=2)
    with under_way(journal), under_way(journal):
        with pytest.raises(Overloaded, match="--max-calls-in-flight"), under_way(journal):
            pass
        assert journal.calls_in_flight == 2
    assert journal.calls_in_flight == 0
    await journal.close()


async def test_a_recording_that_can_never_be_stored_is_lost_alone_and_said_to_be(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(store, delay_seconds=1_000)
    await journal.pin(rollout("r"))
    for number, candidate_id in enumerate([BASELINE, "cand_9", BASELINE]):
        journal.record(recorded(number, candidate_id=candidate_id), size_bytes=1)
    with caplog.at_level(logging.ERROR):
        await journal.flush()
    assert (await calls_of(store), journal.counts.lost, journal.waiting) == (2, 1, 0)
    assert [r.message for r in caplog.records] == ["recordings_lost"]
    await journal.close()


async def test_what_is_refused_at_the_end_is_counted_as_lost(store: Store, file: Path) -> None:
    journal = Journal(store, delay_seconds=1_000)
    await journal.pin(rollout("r"))
    journal.record(recorded(1), size_bytes=1)
    with refusing(file, "mipro_traces"):
        await journal.close()
    assert (journal.counts.lost, journal.waiting) == (1, 0)


async def test_recordings_of_a_deleted_session_or_rollout_are_no_loss_and_hold_up_no_others(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await create(store, "deleted")
    other = {"session_id": "deleted", "candidate_id": "baseline_of_deleted"}
    journal = Journal(store, delay_seconds=1_000)
    await journal.pin(rollout("r"))
    await journal.pin(rollout("r", **other))
    await store.delete_session("deleted")
    journal.record(recorded(0, "r"), size_bytes=1)
    journal.record(recorded(1, "removed"), size_bytes=1)
    journal.record(CallRecord(trace("trace_x", "r", **other)), size_bytes=1)
    late, pinned = journal.pin(rollout("r2", **other)), journal.pin(rollout("r3"))
    with caplog.at_level(logging.WARNING):
        await journal.flush()
    assert (await calls_of(store), journal.counts.lost, journal.waiting) == (1, 0, 0)
    assert (await pinned).position
    with pytest.raises(SessionNotFound):
        await late
    assert not caplog.records
    await journal.close()
