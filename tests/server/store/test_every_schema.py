"""Each released schema is brought forward with its rows; a failure changes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool, create_engine, text

from prefect_mipro.errors import StoreFailed
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import inspected, open_store, schema_of
from prefect_mipro.server.store.schema import metadata
from tests.server.store.test_upgrade import MADE_BY_0001, _fill_like, _rows, _work, live

VERSIONS = resources.files("prefect_mipro.server.store.migrations") / "versions"
REVISIONS = sorted(file.name[:4] for file in VERSIONS.iterdir() if file.name[:4].isdigit())

# What a schema has that those before it had not, in rows that must be there in the end.
LATER_ROWS = {
    "0004": "INSERT INTO mipro_proposers VALUES ('s2', 'a server', 7)",
    "0005": "INSERT INTO mipro_keys VALUES ('key_1', 'ada', 'research', 'digest', 5, NULL)",
    "0010": "INSERT INTO mipro_removed_rollouts VALUES ('s2', 'gone', NULL)",
    "0012": "INSERT INTO mipro_forget_requests VALUES ('f', 's2', 'user', 'ada', 0, 0, 5)",
}
# What stands in the way of a migration, and how it is taken away.
OBSTACLES = {
    "0002": ("CREATE TABLE mipro_example_rewards (n BIGINT)", "DROP TABLE mipro_example_rewards"),
    "0004": ("CREATE TABLE mipro_proposers (n BIGINT)", "DROP TABLE mipro_proposers"),
    "0005": ("CREATE TABLE mipro_keys (n BIGINT)", "DROP TABLE mipro_keys"),
    "0006": (
        "ALTER TABLE mipro_sessions ADD COLUMN digest_key TEXT",
        "ALTER TABLE mipro_sessions DROP COLUMN digest_key",
    ),
    "0007": (
        "ALTER TABLE mipro_candidates ADD COLUMN untimed_calls BIGINT",
        "ALTER TABLE mipro_candidates DROP COLUMN untimed_calls",
    ),
    "0009": (
        "ALTER TABLE mipro_candidates ADD COLUMN failures BIGINT",
        "ALTER TABLE mipro_candidates DROP COLUMN failures",
    ),
    "0010": (
        "CREATE TABLE mipro_removed_rollouts (n BIGINT)",
        "DROP TABLE mipro_removed_rollouts",
    ),
    "0012": (
        "CREATE TABLE mipro_forget_requests (n BIGINT)",
        "DROP TABLE mipro_forget_requests",
    ),
}


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """The database that the first schema's store made."""
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(MADE_BY_0001.read_text(encoding="utf-8"))
    return file


def bring_to(file: Path, revision: str) -> None:
    """As far as a release of that time would have, with the rows that only it could write."""
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "prefect_mipro.server.store:migrations")
        for each in REVISIONS[: REVISIONS.index(revision) + 1]:
            command.upgrade(config, each)
            if each in LATER_ROWS:
                connection.execute(text(LATER_ROWS[each]))


@pytest.mark.parametrize("revision", REVISIONS)
async def test_every_schema_is_brought_forward_with_its_rows(
    old_file: Path, migrated_file: Path, revision: str
) -> None:
    bring_to(old_file, revision)
    upgraded = await open_store(f"sqlite+aiosqlite:///{old_file}")
    made = await open_store(f"sqlite+aiosqlite:///{migrated_file}")
    await live(made)
    for store in (upgraded, made):
        await store.close()
    with closing(sqlite3.connect(migrated_file)) as connection, connection:
        for each, rows in LATER_ROWS.items():
            if each <= revision:
                connection.execute(rows)
    old, new = _rows(old_file), _rows(migrated_file)
    for table in metadata.tables:
        assert old[table] == new[table], table
    async with inspected(f"sqlite+aiosqlite:///{old_file}") as found:
        assert [check for check in await found.read(audit) if check.problems] == []


@pytest.mark.parametrize("revision", OBSTACLES)
async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    old_file: Path, revision: str
) -> None:
    obstacle, away = OBSTACLES[revision]
    url = f"sqlite+aiosqlite:///{old_file}"
    with closing(sqlite3.connect(old_file)) as connection:
        connection.execute(obstacle)
    before = dump(old_file)
    with pytest.raises(StoreFailed, match=r"already exists|duplicate column"):
        await open_store(url)
    assert dump(old_file) == before
    with closing(sqlite3.connect(old_file)) as connection:
        connection.execute(away)
    await (await open_store(url)).close()


@pytest.mark.parametrize("revision", ["0002", "0006", "0007", "0009"])
async def test_a_migration_that_fails_leaves_a_postgresql_as_it_was(
    old_file: Path, empty_postgres_url: str, revision: str
) -> None:
    obstacle, away = OBSTACLES[revision]
    url = empty_postgres_url
    await _work(url, _fill_like, old_file)
    await _work(url, run, obstacle)
    async with inspected(url) as database:
        before = (await database.read(schema_of)).present, await _work(url, tables)
        with pytest.raises(StoreFailed, match="already exists"):
            await open_store(url)
        assert ((await database.read(schema_of)).present, await _work(url, tables)) == before
    await _work(url, run, away)
    await (await open_store(url)).close()


def dump(file: Path) -> list[str]:
    """The whole database as statements."""
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


def run(connection: Connection, statement: str) -> None:
    connection.execute(text(statement))


def tables(connection: Connection) -> list[Any]:
    """All columns of all tables."""
    columns = text(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    return [tuple(row) for row in connection.execute(columns)]
