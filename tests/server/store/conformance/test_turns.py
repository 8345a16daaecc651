"""The turn to propose for a session: one holder at a time, and none for ever."""

from __future__ import annotations

import asyncio

import pytest

from prefect_mipro.server.store.store import Store
from tests.server.store.records import at, create


async def take(store: Store, holder: str, second: int, *, session_id: str = "s1") -> bool:
    """For ten seconds."""
    return await store.take_turn(session_id, holder=holder, at=at(second), until=at(second + 10))


@pytest.fixture(autouse=True)
async def sessions(store: Store) -> None:
    await create(store)
    await create(store, "s2")


async def test_of_many_that_ask_at_once_one_gets_it(store: Store) -> None:
    got = await asyncio.gather(*(take(store, f"server {number}", 0) for number in range(8)))
    assert sorted(got) == [False] * 7 + [True]


async def test_its_holder_may_renew_it_and_nobody_else(store: Store) -> None:
    assert await take(store, "a", 0)
    assert await take(store, "a", 5)
    assert not await take(store, "b", 14)


async def test_another_takes_it_over_when_its_time_is_up(store: Store) -> None:
    assert await take(store, "a", 0)
    assert await take(store, "b", 10)
    assert not await take(store, "a", 11)


async def test_it_is_free_when_it_is_given_back(store: Store) -> None:
    await take(store, "a", 0)
    await store.give_turn_back("s1", holder="a")
    assert await take(store, "b", 1)


async def test_only_its_holder_gives_it_back(store: Store) -> None:
    await take(store, "a", 0)
    await store.give_turn_back("s1", holder="b")
    assert not await take(store, "b", 1)


async def test_each_session_has_its_own(store: Store) -> None:
    assert await take(store, "a", 0)
    assert await take(store, "b", 0, session_id="s2")
