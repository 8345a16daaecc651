"""Rollouts and events that are removed when they have been kept long enough."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for name in ("removed_rollouts", "removed_events"):
        counter = sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
        op.add_column("mipro_sessions", counter)
    op.create_table(
        "mipro_removed_rollouts",
        sa.Column(
            "session_id", sa.Text(), sa.ForeignKey("mipro_sessions.session_id"), nullable=False
        ),
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text()),
        sa.PrimaryKeyConstraint("session_id", "rollout_id"),
        sqlite_with_rowid=False,
    )
    condition = sa.text("candidate_id IS NULL")
    op.create_index(
        "ix_mipro_rewards_waiting",
        "mipro_rewards",
        ["session_id", "received_at"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
