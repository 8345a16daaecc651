"""Opening a store: the engine, its pragmas, the lock and the migrations."""

from __future__ import annotations

import re
import shlex
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from prefect_mipro.errors import StoreFailed
from prefect_mipro.server.json_text import json_text
from prefect_mipro.server.store import files
from prefect_mipro.server.store.database import (
    Database,
    PostgresDatabase,
    driver_of,
    translated,
)
from prefect_mipro.server.store.schema import VERSION_TABLE, metadata
from prefect_mipro.server.store.sqlite import WRITES, SqliteDatabase
from prefect_mipro.server.store.store import Store

_QUERY = ("host", "port", "sslmode")
SQLITE = "sqlite+aiosqlite"
POSTGRESQL = "postgresql+asyncpg"

# Errors and logs must not show what was stored.
_OPTIONS: dict[str, Any] = {"hide_parameters": True, "json_serializer": json_text}

# Statements that the driver keeps prepared.
_KEPT = {"cached_statements": 512}
_FILE: dict[str, Any] = {"connect_args": _KEPT}
_ONE_CONNECTION: dict[str, Any] = {
    "poolclass": StaticPool,
    "connect_args": {**_KEPT, "check_same_thread": False},
}

# A statement of a server takes milliseconds. One that takes so long waits for a lock that nobody
# lets go, or for a database that is gone without a word. Migrations and checks have no limit.
LONGEST_STATEMENT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
MOST_CONNECTIONS = 15

_MIGRATIONS = Path(__file__).parent / "migrations"
# Alembic keeps the migration under way in module globals.
_MIGRATING = threading.Lock()
# Servers that start together on one PostgreSQL migrate one after the other.
_MIGRATION_LOCK = 0x6D6970726F


async def open_store(
    database_url: str, *, longest_statement_seconds: float = LONGEST_STATEMENT_SECONDS
) -> Store:
    """The store of that database, its schema brought forward. Raises StoreFailed.

    `sqlite+aiosqlite:///path` (one server per file) or `postgresql+asyncpg://...`, where a
    statement that takes longer is given up.
    """
    url = _parsed(database_url)
    if url.drivername == POSTGRESQL:
        return await _open_postgres(url, longest_statement_seconds=longest_statement_seconds)
    database = _sqlite(url)
    try:
        await database.write(_migrate, _name(url))
    except BaseException:
        await database.close()
        raise
    return Store(database)


async def _open_postgres(url: URL, *, longest_statement_seconds: float) -> Store:
    database = _postgres(url, longest_statement_seconds=longest_statement_seconds)
    try:
        if not await database.read(_is_current, _name(url)):
            patient = _postgres(url)
            try:
                await patient.write(_migrate, _name(url))
            finally:
                await patient.close()
    except BaseException:
        await database.close()
        raise
    return Store(database)


async def open_beside_server(database_url: str) -> Store:
    """The store for a short work, also while a server has it open. Raises StoreFailed.

    The schema of a file is brought forward only where no server has it.
    """
    url = _parsed(database_url)
    path = None if url.drivername == POSTGRESQL else _file(url)
    if path is None:
        return await open_store(database_url)
    if path.is_file():
        database = _sqlite_beside(url, path)
        try:
            is_current = await database.read(_is_current, _name(url))
        except BaseException:
            await database.close()
            raise
        if is_current:
            return Store(database)
        await database.close()
    await (await open_store(database_url)).close()
    return Store(_sqlite_beside(url, path))


@dataclass(frozen=True)
class Schema:
    """The number of a database's schema, empty where it has none, and that of this release."""

    present: str
    newest: str

    @property
    def is_current(self) -> bool:
        return self.present == self.newest


@asynccontextmanager
async def inspected(database_url: str) -> AsyncIterator[Database]:
    """The database as it is, for reading: nothing is created, nothing upgraded.

    A server may have it open. Raises StoreFailed where there is none.
    """
    url = _parsed(database_url)
    if url.drivername == POSTGRESQL:
        database: Database = _postgres(url)
    else:
        database = _sqlite_beside(url, existing_file(database_url))
    try:
        yield database
    finally:
        await database.close()


def schema_of(connection: Connection) -> Schema:
    """The schema of the database. Raises StoreFailed if this release does not know it."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    _is_current(connection, "at hand")
    newest = ScriptDirectory.from_config(_config(connection)).get_heads()
    return Schema(", ".join(context.get_current_heads()), ", ".join(newest))


def existing_file(database_url: str) -> Path:
    """The file of a SQLite database. Raises StoreFailed where there is none, or one in memory."""
    path = _file(_parsed(database_url))
    if path is None:
        raise StoreFailed("a database in memory ends with its server; name one in a file")
    if not path.is_file():
        raise StoreFailed(f"there is no database {path}; name it with --database-url")
    return path


def compact(database_url: str) -> tuple[int, int]:
    """Write a SQLite file anew, without what is free in it; its bytes before and after.

    It takes as much room again meanwhile. Raises StoreFailed, also while a server has it open.
    """
    path = existing_file(database_url)
    with _only_server(path, makes_file=False), translated(_name(_parsed(database_url))):
        before = path.stat().st_size
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return before, path.stat().st_size


def postgres_url(database_url: str) -> URL | None:
    """The database's URL with its password; `None` unless it is PostgreSQL."""
    url = _parsed(database_url)
    return url if url.drivername == POSTGRESQL else None


def dump_command(url: URL, target: Path) -> str:
    """The command that copies a PostgreSQL database, without its password."""
    return shlex.join(["pg_dump", "--format=custom", f"--file={target}", f"--dbname={_shown(url)}"])


def compact_command(url: URL) -> str:
    """The command that gives a PostgreSQL database's free space back, without its password."""
    tables = ", ".join(sorted(metadata.tables))
    statement = f"VACUUM (FULL, ANALYZE) {tables}"
    return shlex.join(["psql", f"--dbname={_shown(url)}", f"--command={statement}"])


def _shown(url: URL) -> str:
    query = {name: url.query[name] for name in _QUERY if name in url.query}
    shown = URL.create(
        "postgresql",
        url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query=query,
    )
    return shown.render_as_string()


def _parsed(database_url: str) -> URL:
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):
        raise StoreFailed(
            "the database URL cannot be read; write "
            f"{SQLITE}:///path/to/file.db or {POSTGRESQL}://user:password@host/database"
        ) from None
    if url.drivername not in (SQLITE, POSTGRESQL):
        raise StoreFailed(
            f"the database URL {_name(url)} has the unknown driver {url.drivername!r}; "
            f"write {SQLITE}:///path/to/file.db or {POSTGRESQL}://user:password@host/database"
        )
    return url


def _name(url: URL) -> str:
    """The URL without its password, or options that may hold one."""
    return URL.create(
        url.drivername, url.username, host=url.host, port=url.port, database=url.database
    ).render_as_string()


def _sqlite(url: URL) -> SqliteDatabase:
    path = _file(url)
    engine = _sqlite_engine(url, _FILE if path else _ONE_CONNECTION)
    with ExitStack() as held:
        if path is not None:
            # A URL may say that the file is only to be read, or must be there.
            held.enter_context(_only_server(path, makes_file="mode" not in url.query))
        return SqliteDatabase(engine, name=_name(url), held=held.pop_all(), path=path)


def _sqlite_beside(url: URL, path: Path) -> SqliteDatabase:
    """Without the companion file: short transactions may stand between a server's."""
    engine = _sqlite_engine(url, _FILE)
    return SqliteDatabase(engine, name=_name(url), held=ExitStack(), path=path)


def _sqlite_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    engine = create_engine(url.set(drivername="sqlite"), **_OPTIONS, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _file(url: URL) -> Path | None:
    """The file of the database; `None` when it is in memory."""
    database = url.database or ":memory:"
    return None if ":memory:" in database else Path(database.removeprefix("file:"))


@contextmanager
def _only_server(path: Path, *, makes_file: bool) -> Iterator[None]:
    """Hold the database's companion file, and have the database private to its owner.

    Raises StoreFailed when another server has it.
    """
    if path.is_dir():
        raise StoreFailed(f"the database {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise StoreFailed(
            f"the folder {path.parent} of the database {path.name} is missing; "
            "create it, or name a file in a folder that is there"
        )
    with ExitStack() as stack:
        try:
            real = path.resolve()
            stack.enter_context(files.held(real.with_name(f"{real.name}.lock")))
            if makes_file:
                files.make_private(real)
        except BlockingIOError:
            raise StoreFailed(
                f"another server has the database {path} open, and SQLite serves one; stop it, "
                f"name another file, or share a {POSTGRESQL} database"
            ) from None
        except OSError as error:
            raise StoreFailed(
                f"the folder of the database {path} refuses to be written: {error.strerror}; "
                "allow it, or name a file in another folder"
            ) from None
        yield


def _prepare_sqlite(connection: Any, record: object) -> None:
    # The driver would begin by itself, late and without asking for the write lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    (pages,) = cursor.execute("PRAGMA page_count").fetchone()
    if pages == 0:
        # Once it has tables, a database cannot keep track any more of what it could give back.
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
        # No commit copies the log into the database: a thread of its own does.
        "wal_autocheckpoint = 0",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    # A reader that turns writer half-way fails when another wrote meanwhile: ask at once.
    driver_of(connection).execute("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgres(url: URL, *, longest_statement_seconds: float | None = None) -> PostgresDatabase:
    patience = {"timeout": CONNECT_SECONDS, "command_timeout": longest_statement_seconds}
    try:
        # A connection may have ended while nobody used it: a failover, a firewall's patience.
        engine = create_async_engine(
            url,
            pool_pre_ping=True,
            # All are kept: a connection that is made for a moment costs as much as a hundred calls.
            pool_size=MOST_CONNECTIONS,
            max_overflow=0,
            connect_args=patience,
            **_OPTIONS,
        )
    except ModuleNotFoundError as error:
        raise StoreFailed(
            f"the driver of {_name(url)} is not installed ({error}); install prefect-mipro[server]"
        ) from None
    return PostgresDatabase(engine, name=_name(url))


def _migrate(connection: Connection, name: str) -> None:
    """Upgrade the schema to this release's. Raises StoreFailed for one it does not know."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        _upgrade(connection, name)
    else:
        with _MIGRATING:
            _upgrade(connection, name)


def _upgrade(connection: Connection, name: str) -> None:
    if not _is_current(connection, name):
        command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _is_current(connection: Connection, name: str) -> bool:
    """Whether the schema is this release's. Raises StoreFailed for one it does not know."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    migrations = ScriptDirectory.from_config(_config(connection))
    present = set(context.get_current_heads())
    if unknown := present - {migration.revision for migration in migrations.walk_revisions()}:
        raise StoreFailed(_written_by_another(name, min(unknown), migrations.get_heads()[0]))
    return present == set(migrations.get_heads())


def _written_by_another(name: str, schema: str, ours: str) -> str:
    if _number(schema) < _number(ours):
        return (
            f"the database {name} was written by a development version of prefect-mipro (schema "
            f"{schema}) and cannot be upgraded; export its sessions with that version "
            "(prefect-mipro sessions export), and import them into a new database "
            "(prefect-mipro sessions import)"
        )
    return (
        f"the database {name} was written by a newer release of prefect-mipro (schema {schema}); "
        "install that release, or name another database"
    )


def _number(schema: str) -> int:
    """The number of a schema, `v2`; 0 for one of the time before they had this form."""
    return int(schema[1:]) if re.fullmatch(r"v\d+", schema) else 0
