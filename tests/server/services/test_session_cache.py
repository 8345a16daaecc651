"""Sessions in memory: a server sees its own changes at once, others' within a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from prefect_mipro.errors import SessionNotFound, StoreFailed
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.services.session_cache import (
    OLDEST_SECONDS,
    REMEMBERED_PINS,
    PromptCache,
    SessionCache,
)
from prefect_mipro.server.store.engine import open_beside_server, open_store
from prefect_mipro.server.store.records import Standing
from prefect_mipro.server.store.sqlite import SqliteDatabase
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    candidate,
    create,
    demonstrations,
    instruction,
    pin,
    reward,
    rollout,
    session,
)


class Process:
    """A process on a database, with a clock that moves when told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seconds = 100.0
        self.live = SessionCache(self.store, PromptCache(self.store), timer=lambda: self.seconds)

    async def state(self) -> SessionState:
        return (await self.live.of("s1")).session.state


class SharedStore(Store):
    """A store that other servers may have open, as on PostgreSQL."""

    shared = True


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/mipro.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url)
    await create(opened)
    yield opened
    await opened.close()


@pytest.fixture(params=[Store, SharedStore])
async def own(store: Store, request: pytest.FixtureRequest) -> AsyncIterator[Process]:
    process = Process(request.param(store.database))
    yield process
    await process.live.close()


@pytest.fixture
async def other(store: Store, url: str) -> AsyncIterator[Process]:
    """Another program with the database open."""
    beside = await open_beside_server(url)
    yield Process(beside)
    await beside.close()


@pytest.fixture
def readings(store: Store) -> list[str]:
    """The statements with which the server reads sessions, as they are run."""
    database = store.database
    assert isinstance(database, SqliteDatabase)
    seen: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if "mipro_sessions.config" in statement:
            seen.append(statement)

    return seen


async def test_own_changes_are_seen_at_once(own: Process) -> None:
    assert await own.state() is SessionState.RUNNING
    await own.store.set_state("s1", SessionState.PAUSED, at=at(1))
    assert await own.state() is SessionState.PAUSED


async def test_changes_of_others_are_seen_within_the_stated_time(
    own: Process, other: Process
) -> None:
    assert await own.state() is SessionState.RUNNING
    await other.store.set_state("s1", SessionState.PAUSED, at=at(1))
    own.seconds += OLDEST_SECONDS / 4
    assert await own.state() is SessionState.RUNNING
    own.seconds += OLDEST_SECONDS
    assert await own.state() is SessionState.PAUSED


async def test_a_champion_that_another_program_promotes_serves_within_the_stated_time(
    own: Process, other: Process
) -> None:
    await other.store.add_candidates("s1", [instruction(2)], [candidate(2)])
    assert (await own.live.of("s1")).champion_id == BASELINE
    await other.store.set_champion("s1", "cand_2", at=at(1), reason="by hand")
    own.seconds += OLDEST_SECONDS
    assert (await own.live.of("s1")).champion_id == "cand_2"


async def test_idle_sessions_are_not_read_again_until_another_program_changes_something(
    store: Store, other: Process, readings: list[str]
) -> None:
    process = Process(store)
    sessions = ["s1", *(f"s{number}" for number in range(2, 401))]
    for session_id in sessions[1:]:
        await create(store, session_id)
    readings.clear()
    for number in range(5):
        # Changes by this server do not count.
        await pin(store, rollout(f"r{number}"))
        for session_id in sessions:
            await process.live.of(session_id)
        process.seconds += OLDEST_SECONDS
    assert len(readings) == len(sessions)
    await other.store.set_state("s400", SessionState.PAUSED, at=at(1))
    assert (await process.live.of("s400")).session.state is SessionState.PAUSED
    assert len(readings) == len(sessions) + 1
    await process.live.close()


async def test_calls_at_once_ask_once_whether_anything_has_changed(store: Store) -> None:
    class Counting(Store):
        asked = 0

        async def others_version(self) -> int:
            self.asked += 1
            return await super().others_version()

    counting = Counting(store.database)
    process = Process(counting)
    for _ in range(3):
        process.seconds += OLDEST_SECONDS
        await asyncio.gather(*(process.live.of("s1") for _ in range(10)))
    assert counting.asked == 3


async def test_sessions_are_read_while_the_database_does_not_say_whether_it_has_changed(
    store: Store, other: Process
) -> None:
    class Mute(Store):
        async def others_version(self) -> int:
            raise StoreFailed("locked")

    process = Process(Mute(store.database))
    assert await process.state() is SessionState.RUNNING
    await other.store.set_state("s1", SessionState.PAUSED, at=at(1))
    process.seconds += OLDEST_SECONDS
    assert await process.state() is SessionState.PAUSED
    await process.live.close()


async def test_what_grows_old_is_read_beside_the_calls(own: Process, other: Process) -> None:
    held = await own.live.of("s1")
    await other.store.set_state("s1", SessionState.PAUSED, at=at(1))
    own.seconds += OLDEST_SECONDS * 0.75
    # No call waits for it.
    assert await own.state() is SessionState.RUNNING
    async with asyncio.timeout(20):
        while await own.state() is SessionState.RUNNING:
            await own.store.session("s1")
    assert held.session.state is SessionState.PAUSED


async def test_a_reading_that_began_before_a_change_does_not_hide_it(own: Process) -> None:
    reading = asyncio.create_task(own.live.of("s1"))
    await asyncio.sleep(0)
    await own.store.set_state("s1", SessionState.PAUSED, at=at(1))
    await reading
    assert await own.state() is SessionState.PAUSED


async def test_changes_that_go_on_all_the_time_keep_nobody_waiting(store: Store) -> None:
    class Busy(Store):
        async def standing(self, session_id: str) -> Standing:
            found = await super().standing(session_id)
            live.forget(session_id)
            return found

    busy = Busy(store.database)
    live = SessionCache(busy, PromptCache(busy))
    for _ in range(2):
        async with asyncio.timeout(20):
            assert (await live.of("s1")).session_id == "s1"


async def test_counters_of_others_are_taken_over_and_own_ones_stay(
    own: Process, other: Process
) -> None:
    held = await own.live.of("s1")
    held.rollouts = 3
    await pin(other.store, rollout())
    await other.store.add_reward(reward())
    own.seconds += 2 * OLDEST_SECONDS
    held = await own.live.of("s1")
    assert (held.rollouts, held.rewards) == (3, 1)


async def test_an_unknown_session_is_told_each_time(own: Process, other: Process) -> None:
    for _ in range(2):
        with pytest.raises(SessionNotFound):
            await own.live.of("s2")
    await create(other.store, "s2")
    assert (await own.live.of("s2")).session_id == "s2"


async def test_the_newest_pins_are_remembered_and_no_more(own: Process) -> None:
    for number in range(REMEMBERED_PINS + 10):
        own.live.remember_pin(session(), f"r{number}", "cand")
    assert own.live.pinned(session(), "r9") is None
    assert own.live.pinned(session(), "r10") == "cand"
    assert own.live.pinned(session("s2"), "r10") is None


async def test_an_id_that_came_back_after_a_deletion_elsewhere_is_another_session(
    own: Process, other: Process
) -> None:
    held = await own.live.of("s1")
    held.rollouts = 3
    own.live.remember_pin(held.session, "r1", "cand")
    await other.store.delete_session("s1")
    own.seconds += 2 * OLDEST_SECONDS
    with pytest.raises(SessionNotFound):
        await own.live.of("s1")
    changed: dict[str, Any] = {
        "config": {"prompt_learning": {"algorithm": "mipro", "policy": {"model": "x"}}}
    }
    baseline = candidate(candidate_id="baseline_new")
    again = session(baseline_id="baseline_new", champion_id="baseline_new", **changed)
    await other.store.create_session(again, [instruction(), demonstrations()], baseline)
    found = await own.live.of("s1")
    assert (found.rollouts, found.config.policy.model) == (0, "x")
    assert own.live.pinned(found.session, "r1") is None


async def test_a_deletion_and_a_new_session_between_two_readings_are_noticed(
    own: Process, other: Process
) -> None:
    held = await own.live.of("s1")
    await other.store.delete_session("s1")
    again = session(baseline_id="baseline_new", champion_id="baseline_new")
    baseline = candidate(candidate_id="baseline_new")
    await other.store.create_session(again, [instruction(), demonstrations()], baseline)
    own.seconds += 2 * OLDEST_SECONDS
    assert await own.live.of("s1") is not held
