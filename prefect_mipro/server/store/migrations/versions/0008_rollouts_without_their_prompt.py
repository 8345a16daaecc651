"""Rollouts without their candidate's prompt, and rounds of proposals that see nothing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    unapplied = sa.Column("unapplied_rollouts", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("mipro_candidates", unapplied)
    op.add_column("mipro_sessions", sa.Column("proposal_warning", sa.Text(), nullable=True))
    op.add_column("mipro_rollouts", sa.Column("applied", sa.Boolean(), nullable=True))
    op.add_column("mipro_rollouts", sa.Column("deviation", sa.Double(), nullable=True))
    op.add_column("mipro_rollouts", sa.Column("expected_deviation", sa.Double(), nullable=True))
