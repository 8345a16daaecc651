"""Migrations: they lead to exactly the schema that the statements expect."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import resources
from itertools import accumulate
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.errors import StoreFailed
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.schema import VERSION_TABLE, metadata


def test_a_migrated_database_has_the_schema_of_the_tables(migrated_file: Path) -> None:
    engine = create_engine(f"sqlite:///{migrated_file}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_migrated_database_has_the_indexes_and_constraints_of_the_tables(
    migrated_file: Path, tmp_path: Path
) -> None:
    # What the comparison of Alembic passes over: conditions of indexes, checks, foreign keys.
    made_file = tmp_path / "made.db"
    engine = create_engine(f"sqlite:///{made_file}")
    metadata.create_all(engine)
    engine.dispose()
    assert _schema(migrated_file) == _schema(made_file)


def test_the_migrations_are_part_of_the_package() -> None:
    versions = resources.files("prefect_mipro.server.store.migrations") / "versions"
    numbers = sorted(file.name[:4] for file in versions.iterdir() if file.name[0] == "0")
    assert numbers
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "mipro.db"
    url = f"sqlite+aiosqlite:///{file}"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE mipro_keys (n BIGINT)")
        before = list(connection.iterdump())
    with pytest.raises(StoreFailed, match="already exists"):
        await open_store(url)
    with closing(sqlite3.connect(file)) as connection:
        assert list(connection.iterdump()) == before
        connection.execute("DROP TABLE mipro_keys")
    await (await open_store(url)).close()


async def test_a_migration_that_fails_leaves_a_postgresql_as_it_was(
    empty_postgres_url: str,
) -> None:
    engine = create_async_engine(empty_postgres_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mipro_keys (n BIGINT)"))
    with pytest.raises(StoreFailed, match="already exists"):
        await open_store(empty_postgres_url)
    async with engine.begin() as connection:
        names = await connection.run_sync(lambda opened: inspect(opened).get_table_names())
        assert names == ["mipro_keys"]
        await connection.execute(text("DROP TABLE mipro_keys"))
    await (await open_store(empty_postgres_url)).close()


def _schema(file: Path) -> dict[str, list[str]]:
    """The parts of each table's and index's definition, in an order of their own."""
    connection = sqlite3.connect(file)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != ?",
        (VERSION_TABLE,),
    ).fetchall()
    connection.close()
    return {name: _parts(sql) for name, sql in rows}


def _parts(sql: str) -> list[str]:
    """What stands between the outer parentheses, split at the commas that no others enclose."""
    before, _, inner = " ".join(sql.split()).partition("(")
    inner, _, after = inner.rpartition(")")
    depths = accumulate((char == "(") - (char == ")") for char in inner)
    outer = "".join(
        "\n" if char == "," and not depth else char
        for char, depth in zip(inner, depths, strict=True)
    )
    return [before, *sorted(part.strip() for part in outer.split("\n")), after]
