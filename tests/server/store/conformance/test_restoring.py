"""A session told part by part, written into another store: the same one, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_mipro.errors import Conflict, InputInvalid, Overloaded, SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import inspected, open_store
from prefect_mipro.server.store.store import Store
from tests.server.store.conformance.test_parts import fill, rows_of
from tests.server.store.records import at, create, pin, reward, rollout

PARTS: list[Part] = [part for part in Part if part is not Part.END]
SECRET = "fedcba9876543210fedcba9876543210"
KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

Told = dict[Part, tuple[JsonObject, ...]]


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Store]:
    """Where the session comes from."""
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'source.db'}")
    yield store
    await store.close()


async def told_by(store: Store) -> Told:
    session = await store.session("s1")
    told = {part: await rows_of(store, session, part) for part in PARTS}
    counts = {str(part): len(rows) for part, rows in told.items()}
    return {**told, Part.END: ({"lines": counts},)}


async def write(store: Store, told: Told, *parts: Part) -> None:
    for part in parts or Part:
        await store.restore(
            "s1", part, told[part], workspace="w", secret=SECRET, digest_key=KEY, at=at(99)
        )


async def test_it_is_the_same_session_but_for_its_secret_its_version_and_a_pause(
    store: Store, source: Store
) -> None:
    before = await fill(source)
    await write(store, await told_by(source))
    after = await store.session("s1")
    changed = {
        "workspace": "w",
        "proxy_secret": SECRET,
        "digest_key": KEY,
        "state": SessionState.PAUSED,
        "updated_at": at(99),
    }
    assert after == before.model_copy(update={**changed, "version": before.version + 1})
    assert await store.candidates("s1") == await source.candidates("s1")
    assert await store.levers("s1") == await source.levers("s1")
    assert await store.duel("s1") == await source.duel("s1")
    assert (await store.learning_facts("s1")).blocks == (await source.learning_facts("s1")).blocks
    assert await store.example_traces("s1", limit=9) == await source.example_traces("s1", limit=9)
    assert await store.watermark("s1") == await source.watermark("s1")
    *events, imported = await store.events("s1", since=0, limit=100)
    assert tuple(events) == await source.events("s1", since=0, limit=100)
    assert imported.event_type == "mipro.session.imported"


async def test_what_it_tells_in_its_turn_is_what_it_was_told(store: Store, source: Store) -> None:
    await fill(source)
    told = await told_by(source)
    await write(store, told)
    session = await store.session("s1")
    for part in PARTS:
        if part not in (Part.SESSION, Part.EVENT):
            assert await rows_of(store, session, part) == told[part], part


async def test_what_was_removed_from_it_counts_once_here_too(
    store: Store, source: Store, database_url: str
) -> None:
    await fill(source)
    await source.remove_old("s1", before=at(1), limit=2, at=at(1))
    await write(store, await told_by(source))
    assert (await store.session("s1")).removed_rollouts == 2
    assert (await store.add_reward(reward("again", "r1"))).duplicate
    async with inspected(database_url) as database:
        assert [check for check in await database.read(audit) if check.problems] == []


async def test_it_goes_on_where_it_stood(store: Store, source: Store) -> None:
    before = await fill(source)
    await write(store, await told_by(source))
    pinned = await pin(store, rollout("next"))
    assert pinned.position == before.rollouts + 1
    await store.add_reward(reward("reward_next", "next"))
    after = await store.session("s1")
    assert (after.rollouts, after.rewards) == (before.rollouts + 1, before.rewards + 1)


async def test_a_page_that_is_sent_twice_counts_once(store: Store, source: Store) -> None:
    await fill(source)
    told = await told_by(source)
    for part in Part:
        await write(store, told, part, part)
    session = await store.session("s1")
    assert await rows_of(store, session, Part.TRACE) == told[Part.TRACE]


async def test_a_session_that_had_ended_stays_ended(store: Store, source: Store) -> None:
    await fill(source)
    await source.set_state("s1", SessionState.SUCCEEDED, at=at(5), stop_reason="enough")
    await write(store, await told_by(source))
    after = await store.session("s1")
    assert (after.state, after.stop_reason) == (SessionState.SUCCEEDED, "enough")


async def test_an_import_that_lacks_rows_does_not_end_and_can_be_taken_up(
    store: Store, source: Store
) -> None:
    await fill(source)
    told = await told_by(source)
    await write(store, told, *(part for part in PARTS if part is not Part.REWARD))
    with pytest.raises(Conflict, match="of the 4 lines of reward 0 are here"):
        await write(store, told, Part.END)
    await write(store, told)
    assert (await store.session("s1")).rewards == 4


async def test_until_its_end_nothing_else_changes_the_session(store: Store, source: Store) -> None:
    await fill(source)
    told = await told_by(source)
    await write(store, told, *PARTS)
    with pytest.raises(Overloaded, match="being imported") as refused:
        await store.add_reward(reward("reward_new", "r0"))
    assert refused.value.retry_after_seconds
    await pin(store, rollout("meanwhile"))
    await write(store, told, Part.END)
    await store.add_reward(reward("reward_new", "r0"))
    after = await store.session("s1")
    assert (after.rollouts, after.rewards) == (6, 5)


async def test_a_session_that_is_here_is_left_as_it_is(store: Store, source: Store) -> None:
    await fill(source)
    told = await told_by(source)
    before = await create(store, workspace="w")
    for part in (Part.SESSION, Part.CANDIDATE, Part.END):
        with pytest.raises(Conflict, match="'s1' is here already"):
            await write(store, told, part)
    assert await store.session("s1") == before


async def test_rows_without_their_session_are_refused(store: Store, source: Store) -> None:
    await fill(source)
    told = await told_by(source)
    for part in (Part.ROLLOUT, Part.END):
        with pytest.raises(SessionNotFound, match="'s1'"):
            await write(store, told, part)


@pytest.mark.parametrize(
    ("part", "changes", "problem"),
    [
        (Part.SESSION, {"baseline_id": None}, "baseline_id"),
        (Part.ROLLOUT, {"position": "first"}, "position"),
        (Part.ROLLOUT, {"pinned_at": "yesterday"}, "pinned_at"),
        (Part.TRACE, {"status": "fine"}, "status"),
        (Part.LEVER_VERSION, {"lever": "temperature"}, "'temperature'"),
        (Part.LEVER_VERSION, {"value": {"demonstrations": 5}}, "demonstrations"),
        (Part.DUEL, {"state": "asleep"}, "state"),
        (Part.EVENT, {"data": "words"}, "data"),
    ],
)
async def test_what_is_no_row_is_named(
    store: Store, source: Store, part: Part, changes: JsonObject, problem: str
) -> None:
    await fill(source)
    told = await told_by(source)
    row = {**told[part][0], **changes}
    if part is not Part.SESSION:
        await write(store, told, *PARTS[: PARTS.index(part)])
    with pytest.raises(InputInvalid, match=problem):
        await store.restore(
            "s1", part, [row], workspace="w", secret=SECRET, digest_key=KEY, at=at(99)
        )


async def test_rows_of_an_older_release_get_the_defaults_of_newer_columns(
    store: Store, source: Store
) -> None:
    await fill(source)
    told = await told_by(source)
    late = ("missing", "first_byte_calls", "cost_usd_sum", "untimed_calls")
    older = tuple(
        {name: value for name, value in row.items() if name not in late}
        for row in told[Part.CANDIDATE]
    )
    await write(store, {**told, Part.CANDIDATE: older})
    assert (await store.candidates("s1"))[0].statistics.missing == 0
