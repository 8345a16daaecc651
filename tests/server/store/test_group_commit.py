"""What is written at once is committed at once, and each work undoes only itself."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Connection, StaticPool, create_engine

from prefect_mipro.errors import CandidateNotFound, Conflict, RolloutNotFound, StoreFailed
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.sqlite import SqliteDatabase
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    pin,
    record,
    reward,
    rollout,
    trace,
)


async def test_of_works_asked_for_at_once_one_that_fails_undoes_only_itself(
    file_store: Store,
) -> None:
    await create(file_store)
    works = [
        pin(file_store, rollout(f"r{n}", "cand_9" if n % 3 == 0 else BASELINE)) for n in range(30)
    ]
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, CandidateNotFound)]
    assert failed == list(range(0, 30, 3))
    found = [await file_store.rollout("s1", f"r{n}") for n in range(30)]
    assert [n for n, rollout in enumerate(found) if rollout is None] == failed
    assert (await file_store.candidate(BASELINE)).statistics.rollouts == 20
    assert sorted(rollout.position or 0 for rollout in found if rollout) == list(range(1, 21))


async def test_a_work_that_fails_half_way_leaves_nothing_among_others(
    file_store: Store,
) -> None:
    await create(file_store)
    await pin(file_store, rollout())
    await record(file_store, trace())
    twice = [CallRecord(trace("t2")), CallRecord(trace())]
    outcomes = await asyncio.gather(
        file_store.record_calls(twice),
        file_store.add_reward(reward()),
        record(file_store, trace("t4")),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], Conflict)
    statistics = (await file_store.candidate(BASELINE)).statistics
    assert (statistics.calls, statistics.rewards) == (2, 1)
    traces = await file_store.traces_of("s1", "r1")
    assert [kept.trace_id for kept in traces] == ["trace_1", "t4"]


async def test_each_who_waits_for_a_failed_transaction_has_an_error_of_their_own(
    migrated_file: Path,
) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{migrated_file}?timeout=0.01")
    await create(store)
    other = sqlite3.connect(migrated_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outcomes = await asyncio.gather(
        *(pin(store, rollout(f"r{n}")) for n in range(5)), return_exceptions=True
    )
    other.execute("ROLLBACK")
    other.close()
    assert all(isinstance(outcome, StoreFailed) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 5
    assert (await pin(store, rollout("r0"))).position == 1
    await store.close()


async def test_while_the_disk_hangs_nobody_else_begins_to_wait() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    database = SqliteDatabase(engine, name="slow", held=ExitStack(), longest_write_seconds=0.0)
    begun, released = threading.Event(), threading.Event()

    def hang(_connection: Connection) -> bool:
        begun.set()
        return released.wait(20)

    hanging = asyncio.ensure_future(database.write(hang))
    assert await asyncio.to_thread(begun.wait, 20)
    with pytest.raises(StoreFailed, match="look whether its disk hangs"):
        await database.write(read_one)
    released.set()
    assert await hanging
    assert await database.write(read_one) == 1
    await database.close()


def read_one(connection: Connection) -> int:
    return int(connection.exec_driver_sql("SELECT 1").scalar_one())


@pytest.mark.parametrize("number", [1, 2, 3, 64, 65, 200])
async def test_any_number_of_rollouts_and_calls_is_written_in_order(
    file_store: Store, number: int
) -> None:
    await create(file_store)
    await challenge(file_store)
    wanted = [rollout(f"r{n}", (BASELINE, "cand_2")[n % 2]) for n in range(number)]
    pinned = await file_store.pin(wanted)
    assert [(r.rollout_id, r.position) for r in pinned] == [(f"r{n}", n + 1) for n in range(number)]
    await file_store.record_calls(
        [
            CallRecord(trace(f"t{n}", f"r{n}", candidate_id=r.candidate_id))
            for n, r in enumerate(wanted)
        ]
    )
    totals = await file_store.totals("s1")
    assert (totals.rollouts, totals.calls, totals.prompt_tokens) == (number, number, 7 * number)
    for n in range(number):
        assert [kept.trace_id for kept in await file_store.traces_of("s1", f"r{n}")] == [f"t{n}"]


async def test_of_a_rollout_that_is_wanted_twice_at_once_the_first_is_pinned(
    file_store: Store,
) -> None:
    await create(file_store)
    await challenge(file_store)
    first, second, other = await file_store.pin(
        [rollout("r1"), rollout("r1", "cand_2"), rollout("r2")]
    )
    assert first == second
    assert (first.candidate_id, other.position) == (BASELINE, 2)


async def test_calls_of_one_rollout_in_one_batch_are_no_example(file_store: Store) -> None:
    await create(file_store)
    for rollout_id in ("alone", "twice"):
        await pin(file_store, rollout(rollout_id))
        await file_store.add_reward(reward(f"reward_{rollout_id}", rollout_id))
    await file_store.record_calls(
        [
            CallRecord(trace("t1", "alone")),
            CallRecord(trace("t2", "twice")),
            CallRecord(trace("t3", "twice")),
            CallRecord(trace("t4", "alone", status=500)),
        ]
    )
    (example,) = await file_store.example_traces("s1", limit=9)
    assert example.trace_id == "t1"


async def test_one_unknown_rollout_keeps_a_batch_of_calls_out(file_store: Store) -> None:
    await create(file_store)
    await pin(file_store, rollout())
    with pytest.raises(RolloutNotFound, match="'r9'"):
        await file_store.record_calls([CallRecord(trace("t1")), CallRecord(trace("t2", "r9"))])
    assert (await file_store.candidate(BASELINE)).statistics.calls == 0


async def test_what_is_written_reaches_the_database_itself_in_the_background(
    file_store: Store, migrated_file: Path
) -> None:
    await create(file_store)
    await file_store.set_state("s1", SessionState.PAUSED, at=at(1))
    # Whoever calls the file immutable reads it without its log.
    alone = sqlite3.connect(f"file:{migrated_file}?immutable=1", uri=True)
    async with asyncio.timeout(20):
        while alone.execute("SELECT state FROM mipro_sessions").fetchall() != [("paused",)]:
            alone.close()
            await asyncio.sleep(0.05)
            alone = sqlite3.connect(f"file:{migrated_file}?immutable=1", uri=True)
    alone.close()


async def test_a_closed_store_leaves_no_log(file_store: Store, migrated_file: Path) -> None:
    await create(file_store)
    await file_store.close()
    assert not migrated_file.with_name(f"{migrated_file.name}-wal").exists()


async def test_those_who_watch_are_told_of_changes_but_not_of_calls(file_store: Store) -> None:
    await create(file_store)
    changed: list[str] = []
    file_store.watch(changed.append)
    await pin(file_store, rollout())
    await record(file_store, trace())
    assert changed == []
    await file_store.set_state("s1", SessionState.PAUSED, at=at(1))
    await file_store.add_reward(reward())
    assert changed == ["s1", "s1"]
