"""Copies of a database: of a file while a server writes to it, of a PostgreSQL by its own tools."""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import URL

from prefect_mipro.errors import Conflict, StoreFailed
from prefect_mipro.server.store.lock import held
from prefect_mipro.server.store.tables import metadata

_QUERY = ("host", "port", "sslmode")
# Long enough that no other program's files end in it.
_PARTIAL = ".mipro-backup-partial"


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


def dump_command(url: URL, target: Path) -> str:
    """What copies a PostgreSQL database, without its password."""
    return shlex.join(["pg_dump", "--format=custom", f"--file={target}", f"--dbname={_shown(url)}"])


def compact_command(url: URL) -> str:
    """What gives the free space of a PostgreSQL database back, without its password."""
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
