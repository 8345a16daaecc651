"""The whole schema of the first release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "mipro_sessions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("system_name", sa.Text(), nullable=True),
        sa.Column("proxy_secret", sa.Text(), nullable=False),
        sa.Column("baseline_id", sa.Text(), nullable=False),
        sa.Column("champion_id", sa.Text(), nullable=False),
        sa.Column("proposal_number", sa.BigInteger(), nullable=False),
        sa.Column("proposal_rewards", sa.BigInteger(), nullable=False),
        sa.Column("proposal_failures", sa.BigInteger(), nullable=False),
        sa.Column("proposal_error", sa.Text(), nullable=True),
        sa.Column("proposed_at", sa.BigInteger(), nullable=True),
        sa.Column("serving_candidate_id", sa.Text(), nullable=True),
        sa.Column("serving_rollouts", sa.BigInteger(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("rollouts", sa.BigInteger(), nullable=False),
        sa.Column("rewards", sa.BigInteger(), nullable=False),
        sa.Column("reward_block_length", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_mipro_sessions"),
    )
    op.create_index(
        "ix_mipro_sessions_created_at_session_id", "mipro_sessions", ["created_at", "session_id"]
    )
    op.create_table(
        "mipro_candidates",
        sa.Column("candidate_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("instruction_version", sa.BigInteger(), nullable=False),
        sa.Column("demonstrations_version", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.Column("rollouts", sa.BigInteger(), nullable=False),
        sa.Column("rewards", sa.BigInteger(), nullable=False),
        sa.Column("reward_sum", sa.Double(), nullable=False),
        sa.Column("reward_square_sum", sa.Double(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("failed_calls", sa.BigInteger(), nullable=False),
        sa.Column("unapplied_calls", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("latency_seconds_sum", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_candidates_session_id"
        ),
        sa.PrimaryKeyConstraint("candidate_id", name="pk_mipro_candidates"),
        sa.UniqueConstraint("session_id", "number", name="uq_mipro_candidates_session_id_number"),
    )
    op.create_table(
        "mipro_events",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_events_session_id"
        ),
        sa.PrimaryKeyConstraint("session_id", "seq", name="pk_mipro_events"),
    )
    op.create_table(
        "mipro_frames",
        sa.Column("position", ROW_NUMBER, nullable=False),
        sa.Column("frame_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("sensors", sa.JSON(), nullable=False),
        sa.Column("lever_versions", sa.JSON(), nullable=False),
        sa.Column("trace_ids", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_frames_session_id"
        ),
        sa.PrimaryKeyConstraint("position", name="pk_mipro_frames"),
    )
    op.create_index(
        "ix_mipro_frames_session_id_position", "mipro_frames", ["session_id", "position"]
    )
    op.create_table(
        "mipro_lever_versions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("lever", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("parent_version", sa.BigInteger(), nullable=True),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_lever_versions_session_id"
        ),
        sa.PrimaryKeyConstraint("session_id", "lever", "version", name="pk_mipro_lever_versions"),
    )
    op.create_table(
        "mipro_reward_blocks",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("rewards", sa.BigInteger(), nullable=False),
        sa.Column("reward_sum", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_reward_blocks_session_id"
        ),
        sa.PrimaryKeyConstraint("session_id", "block", name="pk_mipro_reward_blocks"),
    )
    op.create_table(
        "mipro_rewards",
        sa.Column("reward_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("feedback", sa.Text(), nullable=True),
        sa.Column("expected", sa.Text(), nullable=True),
        sa.Column("example_id", sa.Text(), nullable=True),
        sa.Column("trace_ref", sa.Text(), nullable=True),
        sa.Column("artifact", sa.JSON(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("request_key", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_rewards_session_id"
        ),
        sa.PrimaryKeyConstraint("reward_id", name="pk_mipro_rewards"),
        sa.UniqueConstraint(
            "session_id", "request_key", name="uq_mipro_rewards_session_id_request_key"
        ),
        sa.UniqueConstraint(
            "session_id", "rollout_id", name="uq_mipro_rewards_session_id_rollout_id"
        ),
    )
    op.create_table(
        "mipro_duels",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("champion_id", sa.Text(), nullable=False),
        sa.Column("challenger_id", sa.Text(), nullable=False),
        sa.Column("predicted_lift", sa.Double(), nullable=False),
        sa.Column("rollouts_before", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("rollouts", sa.BigInteger(), nullable=False),
        sa.Column("rewards", sa.BigInteger(), nullable=False),
        sa.Column("reward_sum", sa.Double(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["challenger_id"],
            ["mipro_candidates.candidate_id"],
            name="fk_mipro_duels_challenger_id",
        ),
        sa.ForeignKeyConstraint(
            ["champion_id"], ["mipro_candidates.candidate_id"], name="fk_mipro_duels_champion_id"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_duels_session_id"
        ),
        sa.PrimaryKeyConstraint("session_id", "number", name="pk_mipro_duels"),
    )
    op.create_table(
        "mipro_rollouts",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("example_id", sa.Text(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("duel_number", sa.BigInteger(), nullable=True),
        sa.Column("predicted_reward", sa.Double(), nullable=True),
        sa.Column("pinned_at", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("answered_calls", sa.BigInteger(), nullable=False),
        sa.Column("example_trace_id", sa.Text(), nullable=True),
        sa.Column("reward_number", sa.BigInteger(), nullable=True),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "duel_number IS NULL OR predicted_reward IS NOT NULL",
            name=op.f("ck_mipro_rollouts_prediction"),
        ),
        sa.ForeignKeyConstraint(
            ["candidate_id"],
            ["mipro_candidates.candidate_id"],
            name="fk_mipro_rollouts_candidate_id",
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_rollouts_session_id"
        ),
        sa.PrimaryKeyConstraint("session_id", "rollout_id", name="pk_mipro_rollouts"),
    )
    op.create_index(
        "ix_mipro_rollouts_duel",
        "mipro_rollouts",
        ["session_id", "duel_number", "reward_number"],
        sqlite_where=sa.text("reward_number IS NOT NULL AND duel_number IS NOT NULL"),
        postgresql_where=sa.text("reward_number IS NOT NULL AND duel_number IS NOT NULL"),
    )
    op.create_index(
        "ix_mipro_rollouts_examples",
        "mipro_rollouts",
        ["session_id", "reward_number"],
        sqlite_where=sa.text("reward_number IS NOT NULL AND example_trace_id IS NOT NULL"),
        postgresql_where=sa.text("reward_number IS NOT NULL AND example_trace_id IS NOT NULL"),
    )
    op.create_index(
        "ix_mipro_rollouts_rewarded",
        "mipro_rollouts",
        ["session_id", "reward_number"],
        unique=True,
        sqlite_where=sa.text("reward_number IS NOT NULL"),
        postgresql_where=sa.text("reward_number IS NOT NULL"),
    )
    op.create_index(
        "ix_mipro_rollouts_rewarded_candidate",
        "mipro_rollouts",
        ["session_id", "candidate_id", "reward_number"],
        sqlite_where=sa.text("reward_number IS NOT NULL"),
        postgresql_where=sa.text("reward_number IS NOT NULL"),
    )
    op.create_index(
        "ix_mipro_rollouts_rewarded_seed",
        "mipro_rollouts",
        ["session_id", "seed", "reward_number"],
        sqlite_where=sa.text("reward_number IS NOT NULL AND seed IS NOT NULL"),
        postgresql_where=sa.text("reward_number IS NOT NULL AND seed IS NOT NULL"),
    )
    op.create_index(
        "ix_mipro_rollouts_unrewarded",
        "mipro_rollouts",
        ["session_id", "position"],
        sqlite_where=sa.text("reward_number IS NULL"),
        postgresql_where=sa.text("reward_number IS NULL"),
    )
    op.create_index(
        "ix_mipro_rollouts_unrewarded_correlation",
        "mipro_rollouts",
        ["session_id", "correlation_id", "position"],
        sqlite_where=sa.text("reward_number IS NULL"),
        postgresql_where=sa.text("reward_number IS NULL"),
    )
    op.create_table(
        "mipro_traces",
        sa.Column("position", ROW_NUMBER, nullable=False),
        sa.Column("trace_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("response", sa.JSON(), nullable=True),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("unapplied_reason", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("latency_seconds", sa.Double(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id", "rollout_id"],
            ["mipro_rollouts.session_id", "mipro_rollouts.rollout_id"],
            name="fk_mipro_traces_session_id_rollout_id",
        ),
        sa.PrimaryKeyConstraint("position", name="pk_mipro_traces"),
        sa.UniqueConstraint("trace_id", name="uq_mipro_traces_trace_id"),
    )
    op.create_index(
        "ix_mipro_traces_unapplied",
        "mipro_traces",
        ["session_id", "position"],
        sqlite_where=sa.text("unapplied_reason != ''"),
        postgresql_where=sa.text("unapplied_reason != ''"),
    )
