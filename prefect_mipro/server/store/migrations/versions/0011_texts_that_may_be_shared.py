"""Rewards that say whether the texts of their rollout may be shown to other users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column(
        "mipro_rewards",
        sa.Column("shareable", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
