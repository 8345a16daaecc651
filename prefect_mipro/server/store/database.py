"""Transactions on a database: one writer at a time where it must be so, and errors of ours."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from prefect_mipro.errors import Conflict, StoreFailed

WRITES = "mipro_writes"


class Database:
    """An engine whose transactions raise Conflict and StoreFailed.

    SQLite has one writer: waiting for it here is fair and ends at once, SQLite itself would poll.
    With a `shared_connection` all transactions run on one connection, so that readers wait too.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        name: str,
        shared_connection: bool = False,
        held: ExitStack | None = None,
    ) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**{WRITES: True})
        self._name = name
        queue = asyncio.Lock()
        free: AbstractAsyncContextManager[None] = nullcontext()
        self._write_queue = queue if engine.dialect.name == "sqlite" else free
        self._read_queue = queue if shared_connection else free
        self._held = held or ExitStack()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that changes nothing."""
        with self.translated():
            async with self._read_queue, self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the end, or leaves nothing when it raises."""
        with self.translated():
            async with self._write_queue, self._writer.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Close all connections, then let go of what is held."""
        with self._held:
            await self._engine.dispose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the database or its driver raises into errors of ours."""
        try:
            yield
        except IntegrityError as error:
            raise Conflict(
                f"another request changed the same rows first ({error.orig}); "
                "read them again and repeat"
            ) from error
        except (SQLAlchemyError, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise StoreFailed(
                f"the database {self._name} refused or is out of reach ({reason}); "
                "check that it is there, writable and not full, then repeat"
            ) from error


async def insert_new(connection: AsyncConnection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there; whether it was inserted."""
    postgres = connection.dialect.name == "postgresql"
    insert = postgresql.insert(table) if postgres else sqlite.insert(table)
    result = await connection.execute(insert.values(values).on_conflict_do_nothing())
    return result.rowcount == 1


def json_text(value: Any) -> str:
    """JSON for a column. ASCII, for what no database encodes; numbers that JSON lacks are null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
