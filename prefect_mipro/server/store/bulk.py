"""Statements of the hot path: many rows at once, run by the driver itself.

SQLAlchemy takes 50 µs for a statement where SQLite takes 2. And SQLite's driver gives up the
interpreter's lock at each step and waits to get it back while the event loop works, so that
`executemany` would wait for each row: here all rows are given to one statement.

The text marks parameters with `?`, with `{lock: a, b}` that the rows are to be locked in the order
of these columns, and with `{given}` the rows that it is given, whose columns are `column1`,
`column2`, and so on; it comes before every `?`. Values are plain: text, numbers, JSON as text,
times as numbers.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, count
from typing import Any

from sqlalchemy import Column, Connection, Table
from sqlalchemy.dialects import postgresql

Rows = Sequence[Sequence[Any]]

# Statements are prepared for 1, 2, 4, ... up to so many rows, and kept.
MOST_ROWS = 64

_POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]
_MARK = re.compile(r"\?")
_LOCK = re.compile(r"\{lock: ([\w, ]+)\}")


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
