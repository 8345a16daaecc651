"""Keys for digests of texts, and sessions that can be deleted.

The references from calls to rollouts, and from rollouts to candidates, are served by no index: a
session's deletion would read all calls of all sessions once for each of its rollouts. They go, and
what they ensured is ensured by the counters, which are found and added to in the same transaction.
"""

from __future__ import annotations

import secrets
from functools import partial

import sqlalchemy as sa
from alembic import op

from prefect_mipro.server.store.migrations.definitions import rewrite_definition

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
        for table, reference in REFERENCES.items():
            rewrite_definition(table, partial(_without, reference))


def _make_keys() -> None:
    connection = op.get_bind()
    sessions = sa.table("mipro_sessions", sa.column("session_id"), sa.column("digest_key"))
    for session_id in connection.scalars(sa.select(sessions.c.session_id)).all():
        connection.execute(
            sa.update(sessions)
            .where(sessions.c.session_id == session_id)
            .values(digest_key=secrets.token_hex(16))
        )


def _without(reference: str, definition: str) -> str:
    lines = definition.split("\n")
    return "\n".join(line for line in lines if f"CONSTRAINT {reference} " not in line)
