"""Calls that failed because of a candidate's prompt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    failures = sa.Column("failures", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("mipro_candidates", failures)
    op.add_column("mipro_candidates", sa.Column("last_failure", sa.Text()))
    op.add_column("mipro_candidates", sa.Column("retired_reason", sa.Text()))
    # So far the reason stands in the message of the event alone.
    op.execute(
        """
        UPDATE mipro_candidates SET retired_reason = (
            SELECT substr(e.message, length(mipro_candidates.candidate_id || ' retired: ') + 1)
            FROM mipro_events e
            WHERE e.session_id = mipro_candidates.session_id
                AND e.event_type = 'mipro.candidate.retired'
                AND e.message LIKE mipro_candidates.candidate_id || ' retired: %'
            ORDER BY e.seq DESC LIMIT 1
        )
        WHERE retired_at IS NOT NULL
        """
    )
    op.add_column("mipro_candidates", sa.Column("demonstration_room", sa.BigInteger()))
    op.add_column("mipro_rollouts", sa.Column("failure", sa.Text()))
    op.add_column("mipro_rollouts", sa.Column("failed_candidate_id", sa.Text()))
    op.add_column("mipro_rollouts", sa.Column("failure_shares", sa.JSON(none_as_null=True)))
    condition = sa.text("failure IS NOT NULL")
    op.create_index(
        "ix_mipro_rollouts_failed",
        "mipro_rollouts",
        ["session_id", "position"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
