"""Calls that a program made itself, and whose latency it does not know."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from prefect_mipro.server.store.migrations.definitions import rewrite_definition

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    untimed = sa.Column("untimed_calls", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("mipro_candidates", untimed)
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("mipro_traces", "latency_seconds", nullable=True)
    else:
        rewrite_definition("mipro_traces", _with_optional_latency)


def _with_optional_latency(definition: str) -> str:
    return definition.replace("latency_seconds DOUBLE NOT NULL", "latency_seconds DOUBLE")
