"""A deletion amid traffic: its own calls find nothing, those of others lose nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_mipro.errors import Overloaded, SessionNotFound
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.removal import Removal
from prefect_mipro.server.store.audit import Check, audit
from prefect_mipro.server.store.engine import inspected, open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from tests.server.store.records import create, reward, rollout, trace

CALLS = 24


@pytest.fixture(params=["file", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        served: str = request.getfixturevalue("postgres_url")
        return served
    return f"sqlite+aiosqlite:///{tmp_path}/mipro.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = await open_store(url)
    for session_id in ("s1", "s2"):
        await create(opened, session_id)
    yield opened
    await opened.close()


async def serve(store: Store, journal: Journal, session_id: str, begun: asyncio.Event) -> int:
    """Rollouts one after the other; how many were rewarded before the session was gone."""
    baseline_id = "baseline_1" if session_id == "s1" else "baseline_of_s2"
    of = {"session_id": session_id, "candidate_id": baseline_id}
    rewarded = 0
    try:
        for number in range(CALLS):
            name = f"{session_id}_{number}"
            await journal.pin(rollout(name, **of))
            journal.record(CallRecord(trace(f"trace_{name}", name, **of)), size_bytes=1)
            await store.add_reward(reward(f"reward_{name}", name, session_id=session_id))
            rewarded += 1
            if rewarded == CALLS // 4:
                begun.set()
    except SessionNotFound:
        pass
    return rewarded


async def lived_in(store: Store, session_id: str) -> None:
    journal = Journal(store)
    await serve(store, journal, session_id, asyncio.Event())
    await journal.close()


async def faults(url: str) -> list[Check]:
    async with inspected(url) as database:
        return [check for check in await database.read(audit) if check.problems]


async def test_amid_traffic_it_goes_whole_and_others_lose_nothing(store: Store, url: str) -> None:
    journal = Journal(store)
    begun, other = asyncio.Event(), asyncio.Event()
    serving = [
        asyncio.create_task(serve(store, journal, "s1", begun)),
        asyncio.create_task(serve(store, journal, "s2", other)),
    ]
    await begun.wait()
    await Removal(store).delete("s1")
    _, rewarded = await asyncio.gather(*serving)
    await journal.close()
    assert (rewarded, journal.counts.lost) == (CALLS, 0)
    kept = await store.session("s2")
    assert (kept.rollouts, kept.rewards) == (CALLS, CALLS)
    assert (await store.candidate("baseline_of_s2")).statistics.calls == CALLS
    with pytest.raises(SessionNotFound):
        await store.session("s1")
    assert await faults(url) == []


async def test_one_that_is_broken_off_is_hidden_no_damage_and_finished_later(
    store: Store, url: str
) -> None:
    await lived_in(store, "s1")
    await store.begin_deletion("s1")
    pieces = 0
    while True:
        assert await faults(url) == []
        with pytest.raises(SessionNotFound):
            await store.session("s1")
        pieces += 1
        if not await store.thin("s1", limit=3):
            break
    assert pieces > 5
    with pytest.raises(Overloaded, match="is being deleted"):
        await create(store, "s1")
    await Removal(store).finish()
    assert await store.begun_deletions() == ()
    await create(store, "s1")
    assert await faults(url) == []


@pytest.mark.parametrize("pieces", [0, 1])
async def test_two_servers_may_finish_the_same_one(store: Store, pieces: int) -> None:
    await lived_in(store, "s1")
    await store.begin_deletion("s1")
    for _ in range(pieces):
        await store.thin("s1", limit=3)
    await asyncio.gather(Removal(store).finish(), Removal(store).finish())
    assert await store.begun_deletions() == ()


async def test_of_two_that_come_at_once_one_succeeds(store: Store) -> None:
    both = (Removal(store).delete("s1") for _ in range(2))
    found = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(each).__name__ for each in found) == ["DeletedSession", "SessionNotFound"]
