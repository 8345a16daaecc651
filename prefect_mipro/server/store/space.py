"""The space that a database takes: whether there is room to write, and what is free given back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, text

from prefect_mipro.server.store.bulk import driver_of
from prefect_mipro.server.store.tables import VERSION_TABLE

# More than any pin needs, and less than anything that is worth counting.
PROBE_BYTES = 64 * 2**10

# New rows take free pages first, so that a file which gave all of them back would grow again.
FREE_PAGES_KEPT = 1_024
PAGES_AT_ONCE = 256

_UPDATE = text(f"UPDATE {VERSION_TABLE} SET version_num = version_num")
_INSERT = text(f"INSERT INTO {VERSION_TABLE} VALUES (:probe)")
_DELETE = text(f"DELETE FROM {VERSION_TABLE} WHERE version_num = :probe")


def write_and_take_back(connection: Connection) -> None:
    """Change nothing, by a transaction that has to be written.

    In SQLite it must find free pages, too: one that may not grow still takes small changes.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_UPDATE)
        return
    probe = {"probe": "probe".ljust(PROBE_BYTES)}
    connection.execute(_INSERT, probe)
    connection.execute(_DELETE, probe)


def give_back(connection: Connection) -> int:
    """Give some free pages of an SQLite file back to its disk; how many.

    PostgreSQL's autovacuum does the same. Files that were made without `auto_vacuum` give nothing
    back before they are compacted.
    """
    if connection.dialect.name == "postgresql":
        return 0
    driver = driver_of(connection)
    free = _free_pages(driver)
    pages = min(free - FREE_PAGES_KEPT, PAGES_AT_ONCE)
    if pages <= 0:
        return 0
    driver.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    return free - _free_pages(driver)


def prepare_to_give_back(driver: sqlite3.Connection) -> None:
    """Have a new database keep track of what it could give back: once it has tables it cannot."""
    (pages,) = driver.execute("PRAGMA page_count").fetchone()
    if pages == 0:
        driver.execute("PRAGMA auto_vacuum = INCREMENTAL")


def compact_file(path: Path) -> None:
    """Write an SQLite file anew, without free pages. It takes as much room again meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _free_pages(driver: sqlite3.Connection) -> int:
    (pages,) = driver.execute("PRAGMA freelist_count").fetchone()
    return int(pages)
