"""Deleting a session: all of it, whatever its state, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.errors import CandidateNotFound, SessionNotFound
from prefect_mipro.models.exports import Part
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.records import CallRecord, SessionFilter
from prefect_mipro.server.store.removal import NEWEST_ROLLOUTS
from prefect_mipro.server.store.schema import metadata
from prefect_mipro.server.store.store import Store
from tests.server.store.conformance.test_parts import fill
from tests.server.store.records import BASELINE, at, create, pin, record, reward, rollout, trace


async def rows_of(database_url: str, session_id: str) -> dict[str, int]:
    """How many rows of the session each table has."""
    engine = create_async_engine(make_url(database_url))
    async with engine.connect() as connection:
        counts = {
            name: (
                await connection.execute(
                    select(func.count()).where(table.c.session_id == session_id)
                )
            ).scalar_one()
            for name, table in metadata.tables.items()
            if "session_id" in table.c
        }
    await engine.dispose()
    return counts


@pytest.mark.parametrize("state", SessionState)
async def test_nothing_is_left_of_it_in_any_state_and_its_neighbour_keeps_all(
    store: Store, database_url: str, state: SessionState
) -> None:
    await fill(store)
    before = await rows_of(database_url, "s2")
    await store.take_turn("s1", holder="here", at=at(1), until=at(2))
    await store.set_state("s1", state, at=at(3))
    await store.delete_session("s1")
    assert not any((await rows_of(database_url, "s1")).values())
    assert await rows_of(database_url, "s2") == before
    with pytest.raises(SessionNotFound):
        await store.session("s1")
    listed = await store.sessions(SessionFilter(), limit=9)
    assert [session.session_id for session in listed.items] == ["s2"]


async def test_one_that_is_half_imported_can_be_deleted(store: Store) -> None:
    session = await create(store)
    (line,) = (await store.part(session, Part.SESSION, limit=1)).items
    await store.delete_session("s1")
    await store.restore(
        "s1",
        Part.SESSION,
        [line],
        workspace="default",
        secret="0" * 32,
        digest_key="1" * 32,
        at=at(9),
    )
    await store.delete_session("s1")
    with pytest.raises(SessionNotFound):
        await store.session("s1")


async def test_its_many_rows_go_in_pieces_of_the_size_that_is_asked_for(
    store: Store, database_url: str
) -> None:
    await fill(store)
    pieces = []
    while piece := await store.thin("s1", limit=2):
        pieces.append(piece)
    assert max(pieces) == 2
    assert len(pieces) > 4
    left = await rows_of(database_url, "s1")
    growing = ("mipro_traces", "mipro_events", "mipro_rewards")
    assert [left[name] for name in growing] == [0] * 3
    assert left["mipro_sessions"] == 1


async def test_a_trace_that_a_reward_calls_its_own_stays_with_its_session(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    other: dict[str, Any] = {"session_id": "s2", "candidate_id": "baseline_of_s2"}
    await pin(store, rollout(**other))
    await record(store, trace("trace_of_s2", **other))
    await pin(store, rollout())
    await store.add_reward(reward(trace_ref="trace_of_s2"))
    await store.delete_session("s1")
    told = await store.part(await store.session("s2"), Part.TRACE, limit=9)
    assert [row["trace_id"] for row in told.items] == ["trace_of_s2"]


async def test_the_same_id_may_be_created_again_and_begins_anew(store: Store) -> None:
    await fill(store)
    await store.delete_session("s1")
    session = await create(store)
    assert (session.version, session.rollouts, session.rewards) == (1, 0, 0)
    assert (await pin(store, rollout())).position == 1
    assert not (await store.add_reward(reward())).duplicate


async def test_from_its_beginning_on_it_is_found_by_nothing_but_its_deletion(store: Store) -> None:
    await fill(store)
    await store.begin_deletion("s1")
    assert await store.begun_deletions() == ("s1",)
    listed = await store.sessions(SessionFilter(), limit=9)
    assert [session.session_id for session in listed.items] == ["s2"]
    assert sum(each.sessions for each in (await store.overview()).by_state.values()) == 1
    for found_by in (
        store.session("s1"),
        store.standing("s1"),
        store.workspace_of("s1"),
        store.pin([rollout("r9")]),
        store.add_reward(reward("reward_9", "r1")),
        store.set_state("s1", SessionState.CANCELLED, at=at(9)),
        store.begin_deletion("s1"),
    ):
        with pytest.raises(SessionNotFound):
            await found_by
    await store.delete_session("s1")
    assert await store.begun_deletions() == ()


async def test_what_comes_late_is_refused_and_leaves_nothing(
    store: Store, database_url: str
) -> None:
    await create(store)
    await pin(store, rollout())
    await store.delete_session("s1")
    with pytest.raises(SessionNotFound):
        await pin(store, rollout("r2"))
    with pytest.raises(SessionNotFound):
        await store.record_calls([CallRecord(trace())])
    with pytest.raises(SessionNotFound):
        await store.add_reward(reward())
    with pytest.raises(SessionNotFound):
        await store.delete_session("s1")
    with pytest.raises(SessionNotFound):
        await store.begin_deletion("s1")
    assert await store.thin("s1", limit=9) == 0
    with pytest.raises(CandidateNotFound):
        await store.candidate(BASELINE)
    assert not any((await rows_of(database_url, "s1")).values())


async def test_calls_that_end_meanwhile_go_with_the_rest(store: Store, database_url: str) -> None:
    await create(store)
    await pin(store, rollout())
    while await store.thin("s1", limit=9):
        pass
    await store.record_calls([CallRecord(trace())])
    await store.delete_session("s1")
    assert not any((await rows_of(database_url, "s1")).values())


async def test_of_many_rollouts_the_newest_stay_until_the_end(
    store: Store, database_url: str
) -> None:
    await create(store)
    await store.pin([rollout(f"r{number}") for number in range(NEWEST_ROLLOUTS + 5)])
    while await store.thin("s1", limit=400):
        pass
    assert (await rows_of(database_url, "s1"))["mipro_rollouts"] == NEWEST_ROLLOUTS
    assert await store.rollout("s1", "r4") is None
    await store.delete_session("s1")
    assert not any((await rows_of(database_url, "s1")).values())
