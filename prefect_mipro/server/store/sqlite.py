"""SQLite: one thread that commits for all, some that read beside it, one that tidies up behind.

What is written while a transaction runs waits for the next one, and all of that is committed at
once: a commit costs the same for one change as for fifty.

What survives: every write that was answered is in the write-ahead log, in the hands of the
operating system, so the death of the process loses nothing. `synchronous = NORMAL` syncs the log
only before it is copied into the database, so that no write waits for the disk. Losing the machine
(power, kernel) may therefore lose the newest transactions, in order and whole, never the ones
before: those since the last checkpoint, `CHECKPOINT_SECONDS` of work.

A file that is deleted or replaced while it is open goes on working, for nobody: what is written to
it then is gone with the process. So each transaction first looks whether it is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine

from prefect_mipro.errors import MiproError, StoreFailed
from prefect_mipro.server.store.database import P, T, Work, driver_of, translated

READER_THREADS = 4

# Marks the connection that writes.
WRITES = "mipro_writes"

# So many works are committed at once. More would keep the first of them waiting.
LARGEST_BATCH = 256

# A transaction that takes longer has met a disk that hangs. Another program that holds the lock is
# waited for half as long.
LONGEST_WRITE_SECONDS = 10.0

# How often what the log holds is copied into the database, and synced.
CHECKPOINT_SECONDS = 1.0

# A log never ends by itself while it is written to. From this size on the writer is held up, for
# as long as the copying of what came in during a checkpoint takes, and begins it anew.
LARGEST_LOG_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Asked:
    """A unit of work, and the future of its result."""

    run: Callable[[Connection], Any]
    last: bool
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def reply(self) -> None:
        if self.answer.done():
            return
        if self.error is None:
            self.answer.set_result(self.result)
        else:
            self.answer.set_exception(self.error)


@dataclass(eq=False)
class SqliteDatabase:
    """The `Database` of one file, or without a `path` of one in memory: then one thread does all.

    `held` is let go after the last connection is closed.
    """

    shared: ClassVar[bool] = False

    engine: Engine
    name: str
    held: ExitStack
    path: Path | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    longest_write_seconds: float = LONGEST_WRITE_SECONDS
    _asked: SimpleQueue[_Asked | None] = field(default_factory=SimpleQueue)
    _closed: threading.Event = field(default_factory=threading.Event)
    _written: threading.Event = field(default_factory=threading.Event)
    _opened: os.stat_result | None = None
    _writing_since: float | None = None

    def __post_init__(self) -> None:
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="store-reader")
        self._threads = [threading.Thread(target=self._write, name="store-writer", daemon=True)]
        if self.path is not None:
            self._threads.append(
                threading.Thread(target=self._tidy, name="store-checkpoints", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.path is None:
            return await self.write(work, *args, **kwargs)

        def transaction() -> T:
            self._require_file()
            with translated(self.name), self.engine.begin() as connection:
                return work(connection, *args, **kwargs)

        try:
            running = self._readers.submit(transaction)
        except RuntimeError:
            raise self._gone() from None
        return await asyncio.wrap_future(running)

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._ask(lambda c: work(c, *args, **kwargs), last=False)

    async def write_last(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._ask(lambda c: work(c, *args, **kwargs), last=True)

    async def close(self) -> None:
        if not self._closed.is_set():
            # Here, where works are asked for too: none can come in behind the last one.
            self._closed.set()
            self._asked.put(None)
        await asyncio.to_thread(self._end)

    def _ask(self, run: Callable[[Connection], T], *, last: bool) -> asyncio.Future[T]:
        if self._closed.is_set():
            raise self._gone()
        since = self._writing_since
        if since is not None and time.monotonic() - since > self.longest_write_seconds:
            raise StoreFailed(
                f"the database {self.name} has been busy with one transaction for more than "
                f"{self.longest_write_seconds:g} seconds; look whether its disk hangs, then repeat"
            )
        loop = asyncio.get_running_loop()
        asked = _Asked(run, last, loop, loop.create_future())
        self._asked.put(asked)
        return asked.answer

    def _gone(self) -> StoreFailed:
        return StoreFailed(f"the database {self.name} is closed; open the store again")

    def _require_file(self) -> None:
        """Raise StoreFailed unless the file is still the one that was opened."""
        opened, present = self._opened, self._present() if self._opened else None
        if opened and not (present and os.path.samestat(opened, present)):
            raise StoreFailed(
                f"the database {self.name} is not the file any more that this server has opened: "
                "it was deleted, moved or replaced; put it back, or stop the server, put a backup "
                "in its place and start again"
            )

    def _present(self) -> os.stat_result | None:
        try:
            return os.stat(self.path) if self.path else None
        except OSError:
            return None

    def _end(self) -> None:
        with self.held:
            for thread in self._threads:
                thread.join()
            self._readers.shutdown()
            self.engine.dispose()

    # the writing thread

    def _write(self) -> None:
        more = True
        with ExitStack() as opened:
            connection: Connection | None = None
            while more:
                batch, more = self._take()
                self._writing_since = time.monotonic()
                try:
                    with translated(self.name):
                        if connection is None:
                            writing = self.engine.execution_options(**{WRITES: True})
                            connection = opened.enter_context(writing.connect())
                            self._opened = self._present()
                        self._require_file()
                        self._commit(connection, batch)
                except MiproError as error:
                    for asked in batch:
                        asked.error = asked.error or _again(error)
                self._writing_since = None
                _reply(batch)

    def _take(self) -> tuple[list[_Asked], bool]:
        """The work queued meanwhile, or the next piece; and whether more may come."""
        batch: list[_Asked] = []
        try:
            asked = self._asked.get()
            while asked is not None:
                batch.append(asked)
                if len(batch) == LARGEST_BATCH:
                    break
                asked = self._asked.get_nowait()
        except Empty:
            pass
        else:
            if asked is None:
                return batch, False
        batch.sort(key=lambda asked: asked.last)
        return batch, True

    def _commit(self, connection: Connection, batch: Sequence[_Asked]) -> None:
        """Do all of it in one transaction, in which a work that fails undoes only itself."""
        if not batch:
            return
        with connection.begin() as transaction:
            if len(batch) == 1:
                self._do(connection, batch[0])
                if batch[0].error is not None:
                    transaction.rollback()
            else:
                for asked in batch:
                    self._do_apart(connection, asked)
        self._written.set()

    def _do_apart(self, connection: Connection, asked: _Asked) -> None:
        """Do it in a transaction of others."""
        driver = driver_of(connection)
        driver.execute("SAVEPOINT work")
        self._do(connection, asked)
        if asked.error is not None:
            # A full disk, for one, undoes the whole transaction by itself.
            if not driver.in_transaction:
                raise asked.error
            driver.execute("ROLLBACK TO work")
        driver.execute("RELEASE work")

    def _do(self, connection: Connection, asked: _Asked) -> None:
        try:
            with translated(self.name):
                asked.result = asked.run(connection)
        except Exception as error:
            asked.error = error

    # the tidying thread

    def _tidy(self) -> None:
        """Copy what the log holds into the database now and then."""
        while not self._closed.wait(self.checkpoint_seconds):
            if self._written.is_set():
                self._written.clear()
                self._checkpoint()

    def _checkpoint(self) -> None:
        try:
            self._require_file()
            with translated(self.name), self.engine.connect() as connection:
                driver = driver_of(connection)
                (page_bytes,) = driver.execute("PRAGMA page_size").fetchone()
                _, pages, _ = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages * page_bytes > LARGEST_LOG_BYTES:
                    driver.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        except MiproError as error:
            logger.warning("checkpoint failed", extra={"reason": error.message})


def others_version(connection: Connection) -> int:
    """A number that changes when another connection commits a change of the database."""
    (version,) = driver_of(connection).execute("PRAGMA data_version").fetchone()
    return int(version)


def _again(error: MiproError) -> MiproError:
    """The same error for another caller, who may add to it."""
    return type(error)(error.message)


def _reply(batch: Sequence[_Asked]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Asked]] = {}
    for asked in batch:
        by_loop.setdefault(asked.loop, []).append(asked)
    for loop, own in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_reply_all, own)


def _reply_all(batch: Sequence[_Asked]) -> None:
    for asked in batch:
        asked.reply()
