"""The space that a database takes: whether there is room to write."""

from __future__ import annotations

from sqlalchemy import Connection, text

from prefect_mipro.server.store.tables import VERSION_TABLE

# More than any pin needs, and less than anything that is worth counting.
PROBE_BYTES = 64 * 2**10

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
