"""What each call took to its first byte, what it cost, and which model answered."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("mipro_traces", sa.Column("first_byte_seconds", sa.Double(), nullable=True))
    op.add_column("mipro_traces", sa.Column("cost_usd", sa.Double(), nullable=True))
    op.add_column("mipro_traces", sa.Column("model", sa.Text(), nullable=True))
    op.add_column("mipro_candidates", _late(sa.Double(), "first_byte_seconds_sum"))
    op.add_column("mipro_candidates", _late(sa.BigInteger(), "first_byte_calls"))
    op.add_column("mipro_candidates", _late(sa.Double(), "cost_usd_sum"))


def _late(kind: sa.types.TypeEngine[Any], name: str) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, server_default="0")
