"""The files of a SQLite database: private to their owner, held by one process, copied whole.

They are private because they hold secrets and texts.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prefect_mipro.errors import Conflict, StoreFailed

PRIVATE = 0o600

# Those that SQLite makes beside a database get its mode.
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO

# Long enough that no other program's files end in it.
_PARTIAL = ".mipro-backup-partial"


@dataclass(frozen=True)
class Exposed:
    """A file that other users of the machine may read or write."""

    path: Path
    mode: int


def sqlite_file(database_url: str) -> Path | None:
    """The file that a URL names; `None` for a database in memory, or of another kind."""
    scheme, _, rest = database_url.partition(":///")
    path = rest.partition("?")[0].removeprefix("file:")
    is_file = scheme.startswith("sqlite") and path and ":memory:" not in path
    return Path(path) if is_file else None


def make_private(path: Path) -> None:
    """Make the file, empty and private whatever the umask, unless it is there."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE))


def exposed(path: Path) -> Iterator[Exposed]:
    """The files of the database that are not private. None on Windows, which has no such modes."""
    if os.name != "posix":
        return
    for suffix in _SUFFIXES:
        file = path.with_name(f"{path.name}{suffix}")
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
        except OSError:
            continue
        if mode & _OF_OTHERS:
            yield Exposed(file, mode)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the file, made if needed, until the end or the death of the process.

    Raises BlockingIOError when another process, or another holder in this one, has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor)
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError(errno.EWOULDBLOCK, "its holder removed it meanwhile", str(path))
        yield
    finally:
        os.close(descriptor)


def copy_file(source: Path, target: Path) -> int:
    """Copy a SQLite database as of one moment; the size of the copy in bytes.

    The copy is checked, and stands under its name only when it is whole. It is readable for its
    owner only: sessions have secrets. What a killed backup left in the folder is removed. Raises
    Conflict where the target is there already, or another backup is writing it.
    """
    if target.exists():
        raise Conflict(f"{target} is there already; name another file, or move it away")
    partial = target.with_name(f"{target.name}{_PARTIAL}")
    try:
        for leftover in target.absolute().parent.glob(f"*{_PARTIAL}"):
            _remove_abandoned(leftover)
        with held(partial):  # for as long as this process lives
            try:
                _copy(source, partial)
                partial.rename(target)
            finally:
                _remove(partial)
    except BlockingIOError:
        raise Conflict(f"another backup is writing {target}; wait until it ends") from None
    except (OSError, sqlite3.Error) as error:
        raise StoreFailed(f"{source} could not be copied to {target}: {error}") from error
    return target.stat().st_size


def _remove_abandoned(partial: Path) -> None:
    """Remove an unfinished copy, unless the backup that writes it is alive."""
    with suppress(OSError), held(partial):
        _remove(partial)


def _remove(partial: Path) -> None:
    """Remove an unfinished copy and SQLite's journal of it."""
    for file in (partial, partial.with_name(f"{partial.name}-journal")):
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        # All pages at once: what is written meanwhile waits in the log, and is not of this moment.
        reading.backup(writing)
        # One file, without a log beside it.
        writing.execute("PRAGMA journal_mode = DELETE").fetchone()
        (verdict,) = writing.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
