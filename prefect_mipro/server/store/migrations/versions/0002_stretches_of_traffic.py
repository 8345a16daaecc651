"""Epochs, missing rewards, and rewards by stretch of traffic and by example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.server.store.rows import example_key

revision = "0002"
down_revision = "0001"

# A count, then sums.
Sums = list[float]

UNSETTLED = "reward_number IS NULL AND given_up_at IS NULL"

# Blocks of consecutive positions: a session has at most so many.
MOST_BLOCKS = 32

# So many rewards are read at once.
PIECE = 10_000


def upgrade() -> None:
    _change_columns()
    _change_indexes()
    _count_promotions()
    _add_past_epochs()
    reward_blocks, example_rewards = _add_reward_blocks(), _add_example_rewards()
    query = sa.text("SELECT session_id, rollouts FROM mipro_sessions")
    for session_id, rollouts in op.get_bind().execute(query).all():
        _count_rewards(session_id, rollouts, reward_blocks, example_rewards)


def _change_columns() -> None:
    for name, first in {
        "missing": 0,
        "proposer_prompt_tokens": 0,
        "proposer_completion_tokens": 0,
        "epoch": 1,
        "epoch_first": 1,
        "promotions": 0,
        "promoted_at": 0,
    }.items():
        op.add_column("mipro_sessions", _count(name, first))
    op.drop_column("mipro_sessions", "reward_block_length")
    op.add_column("mipro_candidates", _count("missing", 0))
    op.add_column("mipro_rollouts", _count("epoch", 1))
    op.add_column("mipro_rollouts", sa.Column("given_up_at", sa.BigInteger(), nullable=True))


def _count(name: str, first: int) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=str(first))


def _add_past_epochs() -> None:
    op.create_table(
        "mipro_past_epochs",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_past_epochs_session_id"
        ),
        sa.PrimaryKeyConstraint("session_id", "epoch", name="pk_mipro_past_epochs"),
    )


def _add_reward_blocks() -> sa.Table:
    """By position, in place of those of rewards in the order in which they came."""
    op.drop_table("mipro_reward_blocks")
    return op.create_table(
        "mipro_reward_blocks",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=False),
        sa.Column("rewards", sa.BigInteger(), nullable=False),
        sa.Column("reward_sum", sa.Double(), nullable=False),
        sa.Column("reward_square_sum", sa.Double(), nullable=False),
        sa.Column("deviation_sum", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["mipro_sessions.session_id"], name="fk_mipro_reward_blocks_session_id"
        ),
        sa.PrimaryKeyConstraint(
            "session_id", "epoch", "block", "candidate_id", name="pk_mipro_reward_blocks"
        ),
    )


def _add_example_rewards() -> sa.Table:
    return op.create_table(
        "mipro_example_rewards",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("example_key", sa.Text(), nullable=False),
        sa.Column("rewards", sa.BigInteger(), nullable=False),
        sa.Column("deviation_sum", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["mipro_sessions.session_id"],
            name="fk_mipro_example_rewards_session_id",
        ),
        sa.PrimaryKeyConstraint("session_id", "example_key", name="pk_mipro_example_rewards"),
    )


def _change_indexes() -> None:
    _index("mipro_candidates_active", ["session_id"], "retired_at IS NULL")
    _index("mipro_candidates_retired", ["session_id", "retired_at"], "retired_at IS NOT NULL")
    _index("mipro_rollouts_unsettled", ["session_id", "position"], UNSETTLED)
    op.drop_index("ix_mipro_rollouts_duel", "mipro_rollouts")
    _index(
        "mipro_rollouts_duel", ["session_id", "duel_number", "position"], "duel_number IS NOT NULL"
    )


def _index(name: str, columns: list[str], condition: str) -> None:
    table = name.rpartition("_")[0]
    where = sa.text(condition)
    op.create_index(f"ix_{name}", table, columns, sqlite_where=where, postgresql_where=where)


def _count_promotions() -> None:
    op.execute(
        """
        UPDATE mipro_sessions SET
            promotions = (
                SELECT count(*) FROM mipro_duels
                WHERE mipro_duels.session_id = mipro_sessions.session_id AND state = 'won'
            ),
            promoted_at = coalesce((
                SELECT max(position) FROM mipro_rollouts
                WHERE mipro_rollouts.session_id = mipro_sessions.session_id AND pinned_at <= (
                    SELECT max(mipro_events.created_at) FROM mipro_events
                    WHERE mipro_events.session_id = mipro_sessions.session_id
                    AND event_type = 'mipro.champion.promoted'
                )
            ), 0)
        """
    )


def _count_rewards(
    session_id: str, rollouts: int, reward_blocks: sa.Table, example_rewards: sa.Table
) -> None:
    """Fill both tables, reward by reward as they came."""
    block_length = 1 << (max(rollouts - 1, 0) // MOST_BLOCKS).bit_length()
    earned: defaultdict[str, Sums] = defaultdict(lambda: [0, 0.0])
    examples: defaultdict[str, Sums] = defaultdict(lambda: [0, 0.0])
    blocks: defaultdict[tuple[int, str], Sums] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for position, candidate_id, example_id, reward, _ in _rewards(session_id):
        before = earned[candidate_id]
        deviation = reward - (before[1] + 1) / (before[0] + 2)
        _add(before, 1, reward)
        expected = 0.0
        if example_id is not None:
            seen = examples[example_key(example_id)]
            expected = expected_deviation(int(seen[0]), seen[1])
            _add(seen, 1, deviation)
        block = blocks[(position - 1) // block_length, candidate_id]
        _add(block, 1, reward, reward * reward, expected)
    op.bulk_insert(
        reward_blocks,
        [_row(reward_blocks, session_id, 1, *key, *sums) for key, sums in blocks.items()],
    )
    op.bulk_insert(
        example_rewards,
        [_row(example_rewards, session_id, key, *sums) for key, sums in examples.items()],
    )


def _rewards(session_id: str) -> Iterator[tuple[Any, ...]]:
    """Position, candidate, example, value and number of each, in the order of the numbers."""
    query = sa.text(
        """
        SELECT position, candidate_id, example_id, reward, reward_number FROM mipro_rollouts
        WHERE session_id = :session_id AND reward_number IS NOT NULL AND reward_number > :last
        ORDER BY reward_number LIMIT :piece
        """
    )
    piece = {"session_id": session_id, "last": 0, "piece": PIECE}
    while rows := op.get_bind().execute(query, piece).all():
        yield from (tuple(row) for row in rows)
        piece["last"] = rows[-1].reward_number


def _row(table: sa.Table, *values: Any) -> dict[str, Any]:
    return dict(zip(table.columns.keys(), values, strict=True))


def _add(sums: Sums, *values: float) -> None:
    sums[:] = [total + value for total, value in zip(sums, values, strict=True)]
