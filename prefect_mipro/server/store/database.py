"""Transactions on a database: plain functions of a connection, run off the event loop.

The same functions serve both databases. SQLite's driver blocks, so transactions run in threads
(`sqlite.py`). PostgreSQL's driver is async already, and SQLAlchemy lets plain functions run on it.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Executable, Row, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from prefect_mipro.errors import Conflict, InputInvalid, MiproError, StoreFailed

P = ParamSpec("P")
T = TypeVar("T")

# Two transactions that change many rows may each wait for what the other has changed.
DEADLOCK = "40P01"
MOST_DEADLOCKS = 5
LONGEST_PAUSE_SECONDS = 0.05

Work = Callable[Concatenate[Connection, P], T]

# What SQLite says, and what to do then.
_WAYS_OUT = (
    ("not a database", "it is a file of another kind: name another"),
    ("readonly", "allow this user to write the file and its folder"),
    ("unable to open", "allow this user to read and write the file and its folder"),
    ("locked", "another program writes to it: end that, then repeat"),
    ("full", "make room on its disk, then repeat"),
)


class Database(Protocol):
    """Runs transactions. They raise Conflict and StoreFailed, besides what the work raises.

    One that is `shared` may be open in other servers, too.
    """

    shared: ClassVar[bool]

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that changes nothing."""
        ...

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work whose changes are committed at its end, or undone when it raises."""
        ...

    async def write_last(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write what nobody waits for: after all that was asked for with it."""
        ...

    async def close(self) -> None: ...


class PostgresDatabase:
    """As many transactions at once as the engine's pool has connections."""

    shared: ClassVar[bool] = True

    def __init__(self, engine: AsyncEngine, *, name: str) -> None:
        from asyncpg import InterfaceError, PostgresError  # which servers with a file do without

        self._engine = engine
        self._name = name
        # SQLAlchemy 2.0 does not wrap what the driver raises while it connects.
        self._unwrapped = (InterfaceError, PostgresError)

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(work, *args, **kwargs)

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with translated(self._name, *self._unwrapped):
            for _ in range(MOST_DEADLOCKS):
                try:
                    return await self._run(work, *args, **kwargs)
                except DBAPIError as error:
                    if not _is_deadlock(error):
                        raise
                # It has ended one transaction so that the other goes on: this one comes after it.
                await asyncio.sleep(random.random() * LONGEST_PAUSE_SECONDS)
            return await self._run(work, *args, **kwargs)

    async def _run(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work, *args, **kwargs)

    async def write_last(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(work, *args, **kwargs)

    async def close(self) -> None:
        await self._engine.dispose()


def _is_deadlock(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == DEADLOCK


@contextmanager
def translated(name: str, *unwrapped: type[Exception]) -> Iterator[None]:
    """Turn what a database or its driver raises into errors of ours.

    `unwrapped` are those of a driver's own that SQLAlchemy lets through.
    """
    known: tuple[type[Exception], ...] = (
        SQLAlchemyError,
        sqlite3.Error,
        OSError,
        OverflowError,
        UnicodeError,
    )
    try:
        yield
    except known + unwrapped as error:
        raise _translation(error, name) from error


def _translation(error: Exception, name: str) -> MiproError:
    # The driver's own words, without the statement that it was asked to run.
    said = error.orig if isinstance(error, DBAPIError) and error.orig else error
    if isinstance(error, IntegrityError | sqlite3.IntegrityError):
        return Conflict(
            f"another request changed the same rows first ({said}); read them again and repeat"
        )
    # SQLAlchemy wraps a DataError of asyncpg, and its many kinds, in no class of its own.
    kinds = {kind.__name__ for cause in (error, said.__cause__) for kind in type(cause).__mro__}
    if isinstance(error, OverflowError | UnicodeError) or "DataError" in kinds:
        return InputInvalid(
            f"the database cannot hold a value that was sent ({said}); "
            "send a smaller number, or text that is valid Unicode"
        )
    reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(said)
    ways = (way for words, way in _WAYS_OUT if words in reason)
    way = next(ways, "check that it is there, in reach and not full, then repeat")
    return StoreFailed(f"the database {name} refused: {reason}; {way}")


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there; whether it was inserted."""
    postgres = connection.dialect.name == "postgresql"
    insert = postgresql.insert(table) if postgres else sqlite.insert(table)
    return connection.execute(insert.values(values).on_conflict_do_nothing()).rowcount == 1


def add_to_row(connection: Connection, table: Table, values: Mapping[str, Any]) -> Row[Any]:
    """Insert a row of counters, or add them to the row with its key. Returns what they are then."""
    return connection.execute(_addition(connection.dialect.name, table), values).one()


@cache
def _addition(dialect: str, table: Table) -> Executable:
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    key = table.primary_key.columns
    counters = [column for column in table.columns if not column.primary_key]
    return insert.on_conflict_do_update(
        index_elements=key,
        set_={column.name: column + insert.excluded[column.name] for column in counters},
    ).returning(*counters)
