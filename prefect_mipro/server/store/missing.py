"""Rewards that do not come: which rollouts are given up, and how far all are settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain, repeat

from sqlalchemy import (
    BigInteger,
    Connection,
    RowMapping,
    Text,
    bindparam,
    func,
    select,
    update,
)

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.server.store.changes import Change, changing
from prefect_mipro.server.store.columns import microseconds
from prefect_mipro.server.store.tables import candidates, rollouts, sessions, unsettled

PIECE = 1_000

_SESSION = bindparam("of_session", type_=Text)
_CANDIDATE = bindparam("of_candidate", type_=Text)
_POSITION = bindparam("of_position", type_=BigInteger)
_COUNT = bindparam("count", type_=BigInteger)

_UNSETTLED_AFTER = (
    select(rollouts.c.position, rollouts.c.candidate_id, rollouts.c.pinned_at, rollouts.c.applied)
    .where(rollouts.c.session_id == _SESSION, unsettled, rollouts.c.position > _POSITION)
    .order_by(rollouts.c.position)
    .limit(_COUNT)
)
_GIVE_UP = update(rollouts).where(
    rollouts.c.session_id == _SESSION, unsettled, rollouts.c.position <= _POSITION
)
_COUNT_MISSING = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(missing=candidates.c.missing + _COUNT)
)
_OLDEST_UNSETTLED = (
    select(rollouts.c.position)
    .where(rollouts.c.session_id == sessions.c.session_id, unsettled)
    .order_by(rollouts.c.position)
    .limit(1)
    .scalar_subquery()
)
_WATERMARK = select(func.coalesce(_OLDEST_UNSETTLED - 1, sessions.c.rollouts)).where(
    sessions.c.session_id == _SESSION
)


def give_up(
    connection: Connection,
    session_id: str,
    *,
    after_rewards: int,
    pinned_before: datetime,
    at: datetime,
) -> int:
    """Mark overdue rollouts missing, oldest first, and return how many.

    A rollout is overdue when `after_rewards` rollouts that were pinned later have their rewards, or
    when it was pinned before `pinned_before`. Its reward still counts when it comes, but not for a
    duel. One event reports all of them.
    """
    with changing(connection, session_id) as change:
        overdue = list(_overdue(change, after_rewards=after_rewards, pinned_before=pinned_before))
        if not overdue:
            return 0
        last = {"of_session": session_id, "of_position": overdue[-1]["position"]}
        connection.execute(_GIVE_UP, {**last, "given_up_at": at})
        count_missing(change, [(row["candidate_id"], row["applied"]) for row in overdue], at=at)
        return len(overdue)


def count_missing(
    change: Change, given_up: Sequence[tuple[str, bool | None]], *, at: datetime
) -> None:
    """Count rollouts that were given up; of each, its candidate and whether that was applied."""
    total = len(given_up)
    # What is no evidence lacks nothing.
    counts = Counter(candidate_id for candidate_id, applied in given_up if applied is not False)
    if counts:
        change.connection.execute(
            _COUNT_MISSING,
            [
                {"of_candidate": candidate_id, "count": count}
                for candidate_id, count in sorted(counts.items())
            ],
        )
    change.set(missing=change["missing"] + total)
    change.record(
        "mipro.rollout.missing",
        f"{total} rollouts were given up: their rewards have not come",
        data={"rollouts": total, "candidates": dict(counts)},
        at=at,
    )


def watermark(connection: Connection, session_id: str) -> int:
    """The position, in the order of the pins, up to which all rollouts are rewarded or missing."""
    settled: int | None = connection.scalar(_WATERMARK, {"of_session": session_id})
    if settled is None:
        raise SessionNotFound.of(session_id)
    return settled


def _overdue(
    change: Change, *, after_rewards: int, pinned_before: datetime
) -> Iterator[RowMapping]:
    """The oldest unsettled rollouts, until one is not overdue."""
    oldest = microseconds(pinned_before)
    settled = change["rewards"] + change["missing"]
    position = 0
    # Mostly the oldest one is not overdue; if it is, the others are read in pieces.
    for count in chain([1], repeat(PIECE)):
        of = {"of_session": change.session_id, "of_position": position, "count": count}
        rows = change.connection.execute(_UNSETTLED_AFTER, of).mappings().all()
        for row in rows:
            # All before it are settled, and none after it is missing.
            later_rewards = settled - (row["position"] - 1)
            if later_rewards < after_rewards and microseconds(row["pinned_at"]) >= oldest:
                return
            yield row
            position = row["position"]
            settled += 1
        if len(rows) < count:
            return
