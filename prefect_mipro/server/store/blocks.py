"""Reward blocks: what each candidate earned in each stretch of the traffic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter

from sqlalchemy import BigInteger, Connection, RowMapping, Text, bindparam, delete, insert, select

from prefect_mipro.models.candidates import RewardBlock
from prefect_mipro.server.store.changes import Change, check_session
from prefect_mipro.server.store.database import add_to_row
from prefect_mipro.server.store.rows import Values
from prefect_mipro.server.store.schema import past_epochs, reward_blocks, sessions

# An epoch has no more of them, so that belief and status cost the same after millions of rewards.
MOST_BLOCKS = 32

_SUMS = ("rewards", "reward_sum", "reward_square_sum", "deviation_sum")

_PAST_EPOCH = select(past_epochs.c.first, past_epochs.c.last).where(
    past_epochs.c.session_id == bindparam("of_session", type_=Text),
    past_epochs.c.epoch == bindparam("of_epoch", type_=BigInteger),
)
# One statement: blocks and the number of rollouts that tells their length belong together.
_BLOCKS = (
    select(
        reward_blocks.c.epoch,
        reward_blocks.c.block,
        reward_blocks.c.candidate_id,
        reward_blocks.c.rewards,
        reward_blocks.c.reward_sum,
        reward_blocks.c.reward_square_sum,
        reward_blocks.c.deviation_sum,
        sessions.c.epoch.label("present_epoch"),
        sessions.c.epoch_first,
        sessions.c.rollouts,
    )
    .join_from(reward_blocks, sessions)
    .where(
        reward_blocks.c.session_id == bindparam("of_session", type_=Text),
        reward_blocks.c.rewards > 0,
    )
    .order_by(reward_blocks.c.epoch, reward_blocks.c.block, reward_blocks.c.candidate_id)
)


@dataclass(frozen=True)
class Epoch:
    """The positions of an epoch's rollouts. Their number alone tells how long its blocks are."""

    first: int
    last: int

    @property
    def block_length(self) -> int:
        """In positions: a power of two."""
        return 1 << (max(self.last - self.first, 0) // MOST_BLOCKS).bit_length()

    def block(self, position: int) -> int:
        """The block of a rollout, from 0."""
        return (position - self.first) // self.block_length

    def bounds(self, block: int) -> tuple[int, int]:
        """The first and the last position of a block."""
        first = self.first + block * self.block_length
        return first, min(first + self.block_length - 1, self.last)


def present_epoch(change: Change) -> Epoch:
    """The epoch that rollouts are pinned in."""
    return Epoch(change["epoch_first"], change["rollouts"])


def make_room(change: Change) -> None:
    """Make one block of each two, if the rollout that was just pinned is one too many."""
    epoch = present_epoch(change)
    before = Epoch(epoch.first, epoch.last - 1)
    if epoch.block_length == before.block_length:
        return
    mine = (
        reward_blocks.c.session_id == change.session_id,
        reward_blocks.c.epoch == change["epoch"],
    )
    rows = change.connection.execute(select(reward_blocks).where(*mine)).mappings().all()
    if rows:
        change.connection.execute(delete(reward_blocks).where(*mine))
        change.connection.execute(insert(reward_blocks), _halved(rows))


def count_reward(
    change: Change,
    *,
    epoch: int,
    position: int,
    candidate_id: str,
    value: float,
    expected_deviation: float,
    times: int = 1,
) -> None:
    """Add a reward to the block of its rollout; -1 `times` takes it out again."""
    bounds = (
        present_epoch(change)
        if epoch == change["epoch"]
        else _past_epoch(change.connection, change.session_id, epoch)
    )
    add_to_row(
        change.connection,
        reward_blocks,
        {
            "session_id": change.session_id,
            "epoch": epoch,
            "block": bounds.block(position),
            "candidate_id": candidate_id,
            "rewards": times,
            "reward_sum": times * value,
            "reward_square_sum": times * value * value,
            "deviation_sum": times * expected_deviation,
        },
    )


def end_epoch(change: Change, *, at: datetime) -> None:
    """Begin another one with the next rollout."""
    epoch = present_epoch(change)
    change.connection.execute(
        insert(past_epochs),
        {
            "session_id": change.session_id,
            "epoch": change["epoch"],
            "first": epoch.first,
            "last": epoch.last,
            "ended_at": at,
        },
    )
    change.set(epoch=change["epoch"] + 1, epoch_first=change["rollouts"] + 1)


def blocks_of(connection: Connection, session_id: str) -> tuple[RewardBlock, ...]:
    """All attached rewards by stretch of traffic and candidate, in order.

    An epoch has at most `MOST_BLOCKS` stretches, however long it lasts: pairs are merged when there
    would be more.
    """
    rows = connection.execute(_BLOCKS, {"of_session": session_id}).all()
    if not rows:
        check_session(connection, session_id)
        return ()
    *_, present, first, last = rows[0]
    epochs = {present: Epoch(first, last)}
    for number in {row.epoch for row in rows} - set(epochs):
        epochs[number] = _past_epoch(connection, session_id, number)
    blocks: list[RewardBlock] = []
    # There may be thousands, so each is read by position, and its bounds once for all candidates.
    for (number, block), stretch in groupby(rows, key=itemgetter(0, 1)):
        first, last = epochs[number].bounds(block)
        blocks += [
            RewardBlock(
                epoch=number,
                first=first,
                last=last,
                candidate_id=candidate_id,
                rewards=rewards,
                reward_sum=reward_sum,
                reward_square_sum=reward_square_sum,
                deviation_sum=deviation_sum,
            )
            for _, _, candidate_id, rewards, reward_sum, reward_square_sum, deviation_sum, *_ in (
                stretch
            )
        ]
    return tuple(blocks)


def _past_epoch(connection: Connection, session_id: str, number: int) -> Epoch:
    row = connection.execute(_PAST_EPOCH, {"of_session": session_id, "of_epoch": number}).one()
    return Epoch(row.first, row.last)


def _halved(rows: Iterable[RowMapping]) -> list[Values]:
    """The rows of blocks that are twice as long."""
    halved: dict[tuple[int, str], Values] = {}
    for row in rows:
        block = row["block"] // 2
        empty = {**row, "block": block, **dict.fromkeys(_SUMS, 0)}
        sums = halved.setdefault((block, row["candidate_id"]), empty)
        for name in _SUMS:
            sums[name] += row[name]
    return list(halved.values())
