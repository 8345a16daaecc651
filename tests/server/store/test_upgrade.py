"""Upgrades: a database of an earlier release holds what it would hold had it been made by this."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.models.candidates import DuelState
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.schema import VERSION_TABLE, metadata
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    duel,
    frame,
    pin,
    record,
    reward,
    rollout,
    trace,
)

T = TypeVar("T")

# What `live` leaves in a database of the first schema, made with the store of that time.
MADE_BY_0001 = Path(__file__).with_name("made_by_0001.sql")


async def live(store: Store) -> None:
    """A session with all that the first schema knows, and one that has just been created."""
    await create(store)
    await create(store, "s2")
    await challenge(store, 2)
    await challenge(store, 3)
    await store.open_duel(duel())
    await store.add_reward(reward("reward_waiting", "r9", 0.75))
    for number in range(1, 67):
        await pin(store, served(number))
    await record(store, trace(), frame())
    for number in (4, 1, 2, 66, 3, 33, 34, 32):
        await store.add_reward(reward(f"reward_{number}", f"r{number}", number % 5 / 4))
    await store.close_duel("s1", 1, DuelState.WON, at=at(66), reason="e-value 25")
    await pin(store, served(67))
    await store.open_duel(duel(2, "cand_3", champion_id="cand_2"))
    await store.retire("s1", ["cand_3"], at=at(68), reason="behind")


async def live_on(store: Store) -> None:
    """What comes after that, and leans on it."""
    for number in range(68, 140):
        await pin(store, served(number))
    for number in (5, 139, 34, 67, 64, 63):
        await store.add_reward(reward(f"late_{number}", f"r{number}", number % 5 / 4))
    await store.give_up("s1", after_rewards=4, pinned_before=at(12), at=at(140))
    await store.add_reward(reward("late_10", "r10", 0.5))
    await store.begin_epoch("s1", at=at(141), reason="another model")
    await pin(store, served(140))
    for number in (140, 6):
        await store.add_reward(reward(f"late_{number}", f"r{number}", number % 5 / 4))
    await store.set_champion("s1", "cand_3", at=at(142), reason="asked")


def served(number: int) -> Any:
    """By turns for each candidate, of some example; of the duel if for the first two."""
    candidate_id = (BASELINE, "cand_2", "cand_3")[number % 3]
    dueled = candidate_id != "cand_3" and number <= 66
    return rollout(
        f"r{number}",
        candidate_id,
        example_id=None if number % 4 == 0 else str(number // 2 % 3),
        duel_number=1 if dueled else None,
        predicted_reward=0.5 if dueled else None,
        pinned_at=at(number),
    )


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """The database that the first schema's store made."""
    file = tmp_path / "old.db"
    connection = sqlite3.connect(file)
    connection.executescript(MADE_BY_0001.read_text(encoding="utf-8"))
    connection.close()
    return file


@pytest.mark.parametrize("goes_on", [False, True], ids=["at once", "after more rollouts"])
async def test_an_upgraded_database_holds_what_one_of_this_release_holds(
    old_file: Path, migrated_file: Path, goes_on: bool
) -> None:
    upgraded = await open_store(f"sqlite+aiosqlite:///{old_file}")
    made = await open_store(f"sqlite+aiosqlite:///{migrated_file}")
    await live(made)
    for store in (upgraded, made):
        if goes_on:
            await live_on(store)
        await store.close()
    old, new = _rows(old_file), _rows(migrated_file)
    for table in metadata.tables:
        assert old[table] == new[table], table


async def test_a_postgresql_is_upgraded_like_a_file(
    old_file: Path, empty_postgres_url: str, postgres_url: str
) -> None:
    await _work(empty_postgres_url, _fill_like, old_file)
    upgraded, made = await open_store(empty_postgres_url), await open_store(postgres_url)
    await live(made)
    for store in (upgraded, made):
        await live_on(store)
        await store.close()
    old, new = await _work(empty_postgres_url, _all_rows), await _work(postgres_url, _all_rows)
    for table in metadata.tables:
        assert old[table] == new[table], table


async def _work(url: str, work: Callable[..., T], *args: object) -> T:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        return await connection.run_sync(work, *args)


def _fill_like(connection: Connection, file: Path) -> None:
    """Make a database of the first schema with the rows of that file."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "prefect_mipro.server.store:migrations")
    command.upgrade(config, "0001")
    engine, tables = create_engine(f"sqlite:///{file}"), MetaData()
    tables.reflect(engine, only=lambda name, _: name != VERSION_TABLE)
    with engine.connect() as source:
        for table in tables.sorted_tables:
            rows = source.execute(table.select()).mappings().all()
            connection.execute(table.insert(), [dict(row) for row in rows])
    engine.dispose()
    for name in ("mipro_frames", "mipro_traces"):
        # The next row's number, which the rows above had with them.
        sequence = f"pg_get_serial_sequence('{name}', 'position')"
        connection.execute(text(f"SELECT setval({sequence}, max(position)) FROM {name}"))


def _all_rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        name: sorted(
            (_comparable(row) for row in connection.execute(table.select()).mappings()), key=repr
        )
        for name, table in metadata.tables.items()
    }


def _rows(file: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, in an order that does not depend on when they were inserted."""
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    rows = {
        table: sorted(
            (_comparable(row) for row in connection.execute(f"SELECT * FROM {table}")), key=repr
        )
        for table in metadata.tables
    }
    connection.close()
    return rows


def _comparable(row: sqlite3.Row | Mapping[Any, Any]) -> dict[str, Any]:
    """By column, without the last digits: sums may have been added up in another order.

    And without the key that an upgrade makes by chance, and what earlier schemas did not keep of a
    reward.
    """
    return {
        name: round(row[name], 12) if isinstance(row[name], float) else row[name]
        for name in sorted(row.keys())
        if name not in {"digest_key", "deviation", "expected_deviation"}
    }
