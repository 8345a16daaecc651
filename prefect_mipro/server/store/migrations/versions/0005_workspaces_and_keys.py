"""Whose a session is, and the keys that are made while a server runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "mipro_sessions",
        sa.Column("workspace", sa.Text(), nullable=False, server_default="default"),
    )
    op.drop_index("ix_mipro_sessions_created_at_session_id", "mipro_sessions")
    op.create_index(
        "ix_mipro_sessions_workspace_created_at_session_id",
        "mipro_sessions",
        ["workspace", "created_at", "session_id"],
    )
    op.create_table(
        "mipro_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name="pk_mipro_keys"),
        sa.UniqueConstraint("name", name="uq_mipro_keys_name"),
        sa.UniqueConstraint("digest", name="uq_mipro_keys_digest"),
    )
