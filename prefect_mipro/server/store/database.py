"""Transactions and statements on both databases: plain functions of a connection.

SQLite's driver blocks, so its transactions run in threads (`sqlite.py`). PostgreSQL's driver is
asynchronous, and SQLAlchemy lets plain functions run on it.

Statements of the hot path take many rows at once and are run by the driver itself: SQLAlchemy takes
50 µs for a statement where SQLite takes 2. And SQLite's driver gives up the interpreter's lock at
each step and waits to get it back while the event loop works, so that `executemany` would wait for
each row: here all rows are given to one statement.

The text of such a statement marks parameters with `?`, with `{lock: a, b}` that the rows are to be
locked in the order of these columns, and with `{given}` the rows that it is given, whose columns
are `column1`, `column2`, and so on; it comes before every `?`. Values are plain: text, numbers,
JSON as text, times as numbers.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain, count
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Column, Connection, Executable, Row, Table
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

Rows = Sequence[Sequence[Any]]

# Statements are prepared for 1, 2, 4, ... up to so many rows, and kept.
MOST_ROWS = 64

_POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]
_MARK = re.compile(r"\?")
_LOCK = re.compile(r"\{lock: ([\w, ]+)\}")


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


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The connection of SQLite's driver."""
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def ask(connection: Connection, text: str, *parameters: Any) -> list[Any]:
    """The rows that a query finds."""
    if _is_postgres(connection):
        return list(connection.exec_driver_sql(_for_postgres(text), parameters).all())
    return driver_of(connection).execute(_for_sqlite(text), parameters).fetchall()


def change(connection: Connection, text: str, *parameters: Any) -> int:
    """How many rows a statement changed."""
    if _is_postgres(connection):
        return connection.exec_driver_sql(_for_postgres(text), parameters).rowcount
    return driver_of(connection).execute(text, parameters).rowcount


def ask_given(
    connection: Connection, text: str, columns: Sequence[Column[Any]], rows: Rows, *parameters: Any
) -> list[Any]:
    """The rows that a query finds among those it is given."""
    return [
        found
        for piece in _pieces(rows)
        for found in ask(connection, *_with_rows(connection, text, columns, piece), *parameters)
    ]


def lock_given(
    connection: Connection, text: str, columns: Sequence[Column[Any]], rows: Rows
) -> None:
    """Lock the rows that a query finds among those it is given.

    An UPDATE takes its rows in the order of its plan, and two that take the same ones in different
    orders wait for each other: PostgreSQL needs a second to see that. On SQLite nothing is to do.
    """
    if _is_postgres(connection):
        ask_given(connection, text, columns, rows)


def change_given(
    connection: Connection, text: str, columns: Sequence[Column[Any]], rows: Rows, *parameters: Any
) -> int:
    """How many rows an `UPDATE ... FROM {given}` changed; no two rows may mean the same one."""
    return sum(
        change(connection, *_with_rows(connection, text, columns, piece), *parameters)
        for piece in _pieces(rows)
    )


def insert_rows(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], rows: Rows
) -> None:
    """Insert rows with these columns, in their order."""
    start = 0
    while start < len(rows):
        # Not filled up like the others: each row must go in once.
        number = min(MOST_ROWS, 1 << ((len(rows) - start).bit_length() - 1))
        piece = rows[start : start + number]
        text = _insertion(table, tuple(columns))
        change(connection, *_with_rows(connection, text, columns, piece))
        start += number


@cache
def _insertion(table: Table, columns: tuple[Column[Any], ...]) -> str:
    names = ", ".join(column.name for column in columns)
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM {{given}}"


def _pieces(rows: Rows) -> Iterator[Rows]:
    """The rows in pieces whose lengths are powers of two; the last row fills its piece up."""
    for start in range(0, len(rows), MOST_ROWS):
        piece = rows[start : start + MOST_ROWS]
        lacking = (1 << (len(piece) - 1).bit_length()) - len(piece)
        yield [*piece, *([piece[-1]] * lacking)] if lacking else piece


def _with_rows(
    connection: Connection, text: str, columns: Sequence[Column[Any]], rows: Rows
) -> Iterator[Any]:
    """The statement, then its parameters."""
    if _is_postgres(connection):
        yield text.replace("{given}", _arrays(tuple(columns)))
        yield from (list(values) for values in zip(*rows, strict=True))
    else:
        yield text.replace("{given}", _values(len(rows), len(columns)))
        yield from chain.from_iterable(rows)


@cache
def _values(rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"(VALUES {', '.join([row] * rows)}) AS given"


@cache
def _arrays(columns: tuple[Column[Any], ...]) -> str:
    types = (column.type.compile(dialect=_POSTGRES) for column in columns)
    names = ", ".join(f"column{number}" for number in range(1, len(columns) + 1))
    return f"unnest({', '.join(f'?::{name}[]' for name in types)}) AS given({names})"


@cache
def _for_postgres(text: str) -> str:
    # The key stays shared, as in `changes.py`.
    numbers = count(1)
    text = _LOCK.sub(r"ORDER BY \1 FOR NO KEY UPDATE", text)
    return _MARK.sub(lambda _: f"${next(numbers)}", text)


@cache
def _for_sqlite(text: str) -> str:
    # Who writes has locked it all.
    return _LOCK.sub("", text)


def _is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
