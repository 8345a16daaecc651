"""A PostgreSQL that takes too long: who waits for it is told in time, and it is used again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.errors import StoreFailed
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from tests.server.store.records import at, create

LONGEST_SECONDS = 0.3


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = await open_store(postgres_url, longest_statement_seconds=LONGEST_SECONDS)
    await create(store)
    yield store
    await store.close()


def sleep(connection: Connection) -> None:
    connection.execute(text("SELECT pg_sleep(60)"))


async def test_a_statement_without_end_is_given_up_and_said_to_be(store: Store) -> None:
    began = time.monotonic()
    with pytest.raises(StoreFailed, match=r"refused: it did not answer in time; .*then repeat"):
        await store.database.read(sleep)
    assert time.monotonic() - began < 20
    await store.require_writable()


async def test_a_lock_that_is_not_let_go_holds_nobody_for_long_and_changes_nothing(
    store: Store, postgres_url: str
) -> None:
    other = create_async_engine(postgres_url, poolclass=NullPool)
    async with other.begin() as connection:
        await connection.execute(text("SELECT 1 FROM mipro_sessions FOR UPDATE"))
        with pytest.raises(StoreFailed, match="in time"):
            await store.set_state("s1", SessionState.PAUSED, at=at(1))
    assert (await store.session("s1")).state is SessionState.RUNNING
    paused = await store.set_state("s1", SessionState.PAUSED, at=at(2))
    assert paused.version == 2
