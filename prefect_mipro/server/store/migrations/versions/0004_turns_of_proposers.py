"""Which server proposes for a session, and until when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "mipro_proposers",
        sa.Column(
            "session_id", sa.Text(), sa.ForeignKey("mipro_sessions.session_id"), primary_key=True
        ),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("held_until", sa.BigInteger(), nullable=False),
    )
