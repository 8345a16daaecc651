"""Changes of SQLite's tables that concern no stored row."""

from __future__ import annotations

from collections.abc import Callable

from alembic import op


def rewrite_definition(table: str, change: Callable[[str], str]) -> None:
    """Change a table's definition, by the procedure that SQLite describes for this.

    The usual one copies the whole table: https://www.sqlite.org/lang_altertable.html, section 7.
    """
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    found = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
    definition = connection.exec_driver_sql(found, (table,)).scalar_one()
    changed = "UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?"
    connection.exec_driver_sql(changed, (change(definition), table))
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
