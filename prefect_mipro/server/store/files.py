"""The files of a SQLite database: private to their owner, because they hold secrets and texts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PRIVATE = 0o600

# Those that SQLite makes beside a database get its mode.
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


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
