"""A session part by part: whole, without secrets, page by page."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    START,
    at,
    challenge,
    create,
    duel,
    pin,
    record,
    reward,
    rollout,
    session,
    trace,
)

ROWS = {
    Part.SESSION: 1,
    Part.LEVER_VERSION: 3,
    Part.CANDIDATE: 2,
    Part.DUEL: 1,
    Part.PAST_EPOCH: 1,
    Part.ROLLOUT: 5,
    Part.REWARD: 4,
    Part.REWARD_BLOCK: 4,  # of few rollouts, each is a block of its own
    Part.EXAMPLE_REWARD: 4,
    Part.TRACE: 5,
}


async def fill(store: Store) -> Session:
    """Some of everything; a reward names the trace of another rollout, and one still waits."""
    await create(store)
    await create(store, "s2")
    await challenge(store)
    await store.begin_epoch("s1", at=at(0), reason="another model")
    await store.open_duel(duel())
    for number in range(5):
        name = f"r{number}"
        await pin(store, rollout(name, example_id=str(number)))
        await record(
            store,
            trace(f"trace_{number}", name, created_at=at(number)),
        )
        if number:
            await store.add_reward(reward(f"reward_{number}", name, trace_ref="trace_0"))
    other: dict[str, Any] = {"session_id": "s2", "candidate_id": "baseline_of_s2"}
    await pin(store, rollout("of_s2", **other))
    await record(store, trace("trace_9", "of_s2", **other))
    return await store.session("s1")


async def rows_of(
    store: Store, of: Session, part: Part, *, limit: int = 100
) -> tuple[JsonObject, ...]:
    page = await store.part(of, part, limit=limit)
    rows = list(page.items)
    while page.next_cursor is not None:
        page = await store.part(of, part, limit=limit, cursor=page.next_cursor)
        rows += page.items
    return tuple(rows)


async def test_every_part_is_told_whole_and_of_its_session_alone(store: Store) -> None:
    filled = await fill(store)
    counts = {part: len(await rows_of(store, filled, part)) for part in ROWS}
    assert counts == ROWS
    events = await store.events("s1", since=0, limit=100)
    assert len(await rows_of(store, filled, Part.EVENT)) == len(events) == filled.version


async def test_pages_of_any_length_have_the_same_rows(store: Store) -> None:
    filled = await fill(store)
    for part in (*ROWS, Part.EVENT):
        whole = await rows_of(store, filled, part)
        for limit in (1, 2, 3):
            assert await rows_of(store, filled, part, limit=limit) == whole, part


async def test_a_trace_comes_once_in_the_order_of_the_calls(store: Store) -> None:
    filled = await fill(store)
    rows = await rows_of(store, filled, Part.TRACE)
    assert [row["trace_id"] for row in rows] == [f"trace_{number}" for number in range(5)]
    assert rows[0]["messages"] == [{"role": "user", "content": "What?"}]
    assert rows[0]["created_at"] == START.isoformat()
    assert "position" not in rows[0]


async def test_the_secret_of_the_session_is_not_told(store: Store) -> None:
    filled = await fill(store)
    (row,) = await rows_of(store, filled, Part.SESSION)
    assert row["session_id"] == "s1"
    assert row["champion_id"] == BASELINE
    assert session().proxy_secret not in str(row)


async def test_rollouts_that_began_since_are_left_out_with_their_traces(store: Store) -> None:
    filled = await fill(store)
    await pin(store, rollout("late"))
    await record(store, trace("trace_late", "late"))
    rollouts = await rows_of(store, filled, Part.ROLLOUT)
    assert [row["rollout_id"] for row in rollouts] == [f"r{number}" for number in range(5)]
    traces = await rows_of(store, filled, Part.TRACE)
    assert "late" not in {row["rollout_id"] for row in traces}


async def test_a_session_that_is_gone_is_named(store: Store) -> None:
    with pytest.raises(SessionNotFound, match="'s1'"):
        await store.part(session(), Part.SESSION, limit=1)
