"""What is PostgreSQL's own: its schema, servers that begin at once, connections that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, RowMapping, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.errors import InputInvalid, StoreFailed
from prefect_mipro.models.rollouts import Rollout
from prefect_mipro.server.store.database import PostgresDatabase
from prefect_mipro.server.store.engine import MOST_CONNECTIONS, open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.schema import VERSION_TABLE, metadata
from prefect_mipro.server.store.store import Store
from tests.postgres import Postgres
from tests.server.store.records import create, pin, rollout, session, trace

SCHEMA = text("""
    SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT conrelid::regclass::text, conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT table_name, concat_ws(' ', column_name, data_type, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'public'
""")
OTHERS_OF_THIS_DATABASE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

STATISTICS = text("SELECT * FROM pg_stat_database WHERE datname = current_database()")
COUNT_ROLLOUT = text(
    "UPDATE mipro_sessions SET rollouts = rollouts + 1 WHERE session_id = :session_id"
)


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = await open_store(postgres_url)
    yield store
    await store.close()


async def test_a_migrated_database_has_the_schema_of_the_tables(
    postgres_url: str, empty_postgres_url: str
) -> None:
    def made(connection: Connection) -> set[tuple[str, str]]:
        metadata.create_all(connection)
        return schema(connection)

    def migrated(connection: Connection) -> set[tuple[str, str]]:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        return schema(connection)

    schemas = []
    for url, read in ((postgres_url, migrated), (empty_postgres_url, made)):
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.begin() as connection:
            schemas.append(await connection.run_sync(read))
    assert schemas[0] == schemas[1]


async def test_servers_that_begin_at_once_on_an_empty_database_all_begin(
    empty_postgres_url: str,
) -> None:
    stores = await asyncio.gather(*(open_store(empty_postgres_url) for _ in range(4)))
    await create(stores[0])
    for store in stores:
        assert (await store.session("s1")).session_id == "s1"
        await store.close()


async def test_connections_that_have_ended_meanwhile_are_made_again(
    store: Store, postgres: Postgres
) -> None:
    await create(store)
    for _ in range(3):
        await asyncio.gather(*(store.session("s1") for _ in range(4)))
        await asyncio.to_thread(postgres.run, OTHERS_OF_THIS_DATABASE)
        assert (await store.session("s1")).baseline_id == session().baseline_id


async def test_an_id_with_a_character_that_postgresql_lacks_is_invalid_input(
    store: Store,
) -> None:
    await create(store)
    with pytest.raises(InputInvalid, match="cannot hold"):
        await pin(store, rollout("r\0"))
    assert (await pin(store, rollout("r1"))).position == 1


async def test_a_database_that_is_not_there_is_named(postgres: Postgres) -> None:
    with pytest.raises(StoreFailed, match=r'/nowhere refused: database "nowhere" does not exist'):
        await open_store(postgres.url("nowhere"))


def schema(connection: Connection) -> set[tuple[str, str]]:
    """Columns, indexes and constraints of each table, in PostgreSQL's own words."""
    rows = connection.execute(SCHEMA).all()
    return {(table, words) for table, words in rows if table != VERSION_TABLE}


async def test_transactions_that_wait_for_each_other_are_both_done(postgres_url: str) -> None:
    store = await open_store(postgres_url)
    for session_id in ("s1", "s2"):
        await create(store, session_id)
    await store.close()
    engine = create_async_engine(postgres_url)
    database = PostgresDatabase(engine, name="two ways")
    begun = []

    def count(connection: Connection, *session_ids: str) -> None:
        begun.append(session_ids)
        for session_id in session_ids:
            connection.execute(COUNT_ROLLOUT, {"session_id": session_id})
            connection.execute(text("SELECT pg_sleep(0.2)"))

    await asyncio.gather(
        database.write(count, "s1", "s2"),
        database.write(count, "s2", "s1"),
    )
    assert len(begun) == 3
    assert await database.read(rollouts_of_both) == [2, 2]
    await database.close()


def rollouts_of_both(connection: Connection) -> list[int]:
    return list(connection.execute(text("SELECT rollouts FROM mipro_sessions")).scalars())


async def test_pins_and_recordings_of_many_sessions_never_wait_for_each_other(
    postgres_url: str,
) -> None:
    before = await statistics(postgres_url)
    stores = [await open_store(postgres_url) for _ in range(2)]
    # In the table they lie the other way round than pins go.
    sessions = [f"s{number}" for number in range(2, 10)]
    for session_id in reversed(sessions):
        await create(stores[0], session_id)

    async def serve(store: Store, name: str) -> None:
        for number in range(6):
            wanted = [
                rollout(f"{name}_{number}", session(each).baseline_id, session_id=each)
                for each in sessions
            ]
            await store.pin(wanted)
            await store.record_calls([call_of(pinned) for pinned in reversed(wanted)])

    await asyncio.gather(
        *(serve(store, f"r{n}_{m}") for m, store in enumerate(stores) for n in "ab")
    )
    counted = await stores[1].candidates(sessions[0])
    assert [(each.statistics.rollouts, each.statistics.calls) for each in counted] == [(24, 24)]
    for store in stores:
        await store.close()
    after = await statistics(postgres_url)
    assert after["deadlocks"] == before["deadlocks"]


async def test_connections_are_kept_for_the_next_who_need_as_many(postgres_url: str) -> None:
    before = await statistics(postgres_url)
    store = await open_store(postgres_url)
    await create(store)
    for _ in range(4):
        await asyncio.gather(*(store.session("s1") for _ in range(MOST_CONNECTIONS)))
    await store.close()
    after = await statistics(postgres_url)
    # One more asks for the statistics.
    assert after["sessions"] - before["sessions"] <= MOST_CONNECTIONS + 1


async def statistics(url: str) -> RowMapping:
    """What has happened so far, in the connections that have ended."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        return (await connection.execute(STATISTICS)).mappings().one()


def call_of(pinned: Rollout) -> CallRecord:
    of = {
        "rollout_id": pinned.rollout_id,
        "session_id": pinned.session_id,
        "candidate_id": pinned.candidate_id,
    }
    name = f"{pinned.session_id}_{pinned.rollout_id}"
    return CallRecord(trace(f"trace_{name}", **of))
