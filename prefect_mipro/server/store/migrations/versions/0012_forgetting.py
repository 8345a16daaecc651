"""Requests to forget, and candidates that must not be served at all any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "mipro_forget_requests",
        sa.Column("request_id", sa.Text(), primary_key=True),
        sa.Column(
            "session_id", sa.Text(), sa.ForeignKey("mipro_sessions.session_id"), nullable=False
        ),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("rollouts", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_mipro_forget_requests_session_id", "mipro_forget_requests", ["session_id"])
    op.add_column("mipro_candidates", sa.Column("withdrawn_at", sa.BigInteger()))
    condition = sa.text("withdrawn_at IS NOT NULL")
    op.create_index(
        "ix_mipro_candidates_withdrawn",
        "mipro_candidates",
        ["session_id"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
