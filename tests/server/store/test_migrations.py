"""Migrations: they lead to exactly the schema that the statements expect."""

from __future__ import annotations

import sqlite3
from importlib import resources
from itertools import accumulate
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

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
