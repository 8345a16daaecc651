"""Keys for digests of texts, and sessions that can be deleted.

The references from calls to rollouts, and from rollouts to candidates, are served by no index: a
session's deletion would read all calls of all sessions once for each of its rollouts. They go, and
what they ensured is ensured by the counters, which are found and added to in the same transaction.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

REFERENCES = {
    "mipro_traces": "fk_mipro_traces_session_id_rollout_id",
    "mipro_rollouts": "fk_mipro_rollouts_candidate_id",
}


def upgrade() -> None:
    op.add_column(
        "mipro_sessions", sa.Column("digest_key", sa.Text(), nullable=False, server_default="")
    )
    _make_keys()
    if op.get_bind().dialect.name == "postgresql":
        for table, reference in REFERENCES.items():
            op.drop_constraint(reference, table, type_="foreignkey")
    else:
        _drop_references_of_sqlite()


def _make_keys() -> None:
    connection = op.get_bind()
    sessions = sa.table("mipro_sessions", sa.column("session_id"), sa.column("digest_key"))
    for session_id in connection.scalars(sa.select(sessions.c.session_id)).all():
        connection.execute(
            sa.update(sessions)
            .where(sessions.c.session_id == session_id)
            .values(digest_key=secrets.token_hex(16))
        )


def _drop_references_of_sqlite() -> None:
    """By the procedure that SQLite describes for changes that concern no stored row.

    The usual one copies the whole table: https://www.sqlite.org/lang_altertable.html, section 7.
    """
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    for table, reference in REFERENCES.items():
        found = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        definition = connection.exec_driver_sql(found, (table,)).scalar_one()
        lines = [line for line in definition.split("\n") if f"CONSTRAINT {reference} " not in line]
        changed = "UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?"
        connection.exec_driver_sql(changed, ("\n".join(lines), table))
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
