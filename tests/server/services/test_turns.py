"""Whose turn it is to propose, on a PostgreSQL that two servers share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_mipro.server.ids import utc_now
from prefect_mipro.server.services.proposals import Turns
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from tests.server.store.records import create

TURN_SECONDS = 0.6


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = await open_store(postgres_url)
    await create(store)
    yield store
    await store.close()


def turns(store: Store, holder: str) -> Turns:
    return Turns(store, holder=holder, clock=utc_now, turn_seconds=TURN_SECONDS)


async def gets_it(turns: Turns) -> bool:
    async with turns.of("s1") as own:
        return own


async def test_a_server_that_lives_keeps_its_turn_as_long_as_it_needs(store: Store) -> None:
    began = time.monotonic()
    async with turns(store, "a").of("s1") as own:
        assert own
        while time.monotonic() - began < 2 * TURN_SECONDS:
            assert not await gets_it(turns(store, "b"))
    assert await gets_it(turns(store, "b"))


async def test_another_server_takes_over_from_one_that_has_died(store: Store) -> None:
    died = datetime.now(UTC)
    await store.take_turn("s1", holder="a", at=died, until=died)
    assert await gets_it(turns(store, "b"))


async def test_a_turn_that_was_taken_before_the_clock_was_set_back_is_free(store: Store) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    await store.take_turn("s1", holder="a", at=tomorrow, until=tomorrow)
    assert await gets_it(turns(store, "b"))


async def test_a_clock_that_is_a_little_behind_takes_no_turn_of_another(store: Store) -> None:
    now = datetime.now(UTC)
    turn = timedelta(seconds=60)
    await store.take_turn("s1", holder="a", at=now + turn / 2, until=now + turn * 3 / 2)
    assert not await store.take_turn("s1", holder="b", at=now, until=now + turn)


async def test_who_fails_in_its_turn_gives_it_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        async with turns(store, "a").of("s1"):
            raise ZeroDivisionError
    assert await gets_it(turns(store, "b"))


async def test_who_has_the_database_alone_asks_nobody(tmp_path: Path) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'mipro.db'}")
    async with turns(store, "a").of("s1") as own, turns(store, "a").of("s1") as again:
        assert (own, again) == (True, True)
    await store.close()


async def test_of_two_servers_that_ask_at_once_one_has_the_turn(store: Store) -> None:
    both = asyncio.Barrier(2)

    async def ask(holder: str) -> bool:
        async with turns(store, holder).of("s1") as own:
            await both.wait()
            return own

    assert sorted(await asyncio.gather(ask("a"), ask("b"))) == [False, True]
