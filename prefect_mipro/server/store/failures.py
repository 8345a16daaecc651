"""Rollouts without a reward: those that failed because of their prompts, and those given up."""

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
    case,
    func,
    select,
    update,
)

from prefect_mipro.errors import RolloutNotFound, SessionNotFound
from prefect_mipro.models.rollouts import CallFailure, FailedRollout, FailureKind, Rollout
from prefect_mipro.server.store.changes import Change, changing, check_candidates
from prefect_mipro.server.store.records import CallRecord, Failures
from prefect_mipro.server.store.rewards import (
    count_duel_reward,
    read_rollout,
    tell_applied,
)
from prefect_mipro.server.store.rows import Values
from prefect_mipro.server.store.schema import (
    candidates,
    failed,
    microseconds,
    rollouts,
    sessions,
    unsettled,
)

# Older failures say little about the candidates in play.
NEWEST_FAILURES = 512

_COUNT_ROLLOUT = (
    update(candidates)
    .where(candidates.c.candidate_id == bindparam("of_candidate", type_=Text))
    .values(rollouts=candidates.c.rollouts + 1)
)

_ROWS_AT_ONCE = 1_000

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


def newest_failures(connection: Connection, session_id: str) -> Failures:
    """How many rollouts have failed because of their prompts, and the newest ones."""
    mine = candidates.c.session_id == session_id
    total = connection.scalar(select(func.sum(candidates.c.failures)).where(mine)) or 0
    if not total:
        return Failures()
    query = (
        select(rollouts.c.failed_candidate_id, rollouts.c.failure_shares)
        .join(sessions, sessions.c.session_id == rollouts.c.session_id)
        .where(
            rollouts.c.session_id == session_id,
            failed,
            rollouts.c.position >= sessions.c.epoch_first,
        )
        .order_by(rollouts.c.position.desc())
        .limit(NEWEST_FAILURES)
    )
    found = [
        FailedRollout(candidate_id=candidate_id, shares=shares or {})
        for candidate_id, shares in connection.execute(query)
    ]
    # PostgreSQL adds whole numbers up to decimals.
    return Failures(int(total), tuple(reversed(found)))


def evidence_begins(change: Change) -> int:
    """The position from which on failed rollouts are those that `newest_failures` finds."""
    oldest = (
        select(rollouts.c.position)
        .where(
            rollouts.c.session_id == change.session_id,
            failed,
            rollouts.c.position >= change["epoch_first"],
        )
        .order_by(rollouts.c.position.desc())
        .offset(NEWEST_FAILURES - 1)
        .limit(1)
    )
    return change.connection.scalar(oldest) or int(change["epoch_first"])


def note_failure(change: Change, call: CallRecord) -> None:
    """Count the failure of a call, each rollout once. A refused call ends its rollout."""
    failure, rollout_id, at = call.failure, call.trace.rollout_id, call.trace.created_at
    assert failure is not None
    refused = failure.kind is FailureKind.REFUSED
    if not _mark(change, rollout_id, failure, {"given_up_at": at} if refused else {}):
        return
    connection = change.connection
    _count_failure(connection, failure, rollouts=0, missing=int(refused))
    if refused:
        change.set(missing=change["missing"] + 1)
        rollout = read_rollout(connection, change.session_id, rollout_id)
        if rollout is not None and rollout.duel_number is not None:
            count_duel_reward(connection, rollout, 0.0)
    change.record(
        "mipro.rollout.failed",
        f"a call of rollout {rollout_id} of {failure.candidate_id} failed: {failure.reason}",
        data={
            "rollout_id": rollout_id,
            "candidate_id": failure.candidate_id,
            "reason": failure.reason,
        },
        at=at,
    )


def fall_back(
    connection: Connection,
    session_id: str,
    rollout_id: str,
    failure: CallFailure,
    candidate_id: str,
    *,
    at: datetime,
) -> Rollout:
    """Give the rollout of a failed call to the candidate that answers instead.

    Its reward is counted for that candidate, but is no evidence; in a duel it counts as a failure
    of the candidate that was chosen. A rollout that failed before, has its reward or was given up
    stays as it is. Returns the rollout as it is then. Raises RolloutNotFound.
    """
    with changing(connection, session_id) as change:
        rollout = read_rollout(connection, session_id, rollout_id)
        if rollout is None:
            raise RolloutNotFound(f"session {session_id!r} has no rollout {rollout_id!r}")
        check_candidates(connection, session_id, candidate_id)
        tell_applied(change, rollout_id, applied=True)
        to = {"candidate_id": candidate_id}
        if not _mark(change, rollout_id, failure, to):
            return rollout
        for each_id in sorted({failure.candidate_id, candidate_id}):  # as they are locked elsewhere
            if each_id == candidate_id:
                connection.execute(_COUNT_ROLLOUT, {"of_candidate": candidate_id})
            else:
                _count_failure(connection, failure, rollouts=-1, missing=0)
        if rollout.duel_number is not None:
            count_duel_reward(connection, rollout, 0.0)
        change.record(
            "mipro.rollout.fell_back",
            f"rollout {rollout_id} went on with {candidate_id}: a call of {failure.candidate_id} "
            f"failed: {failure.reason}",
            data={
                "rollout_id": rollout_id,
                "candidate_id": candidate_id,
                "failed_candidate_id": failure.candidate_id,
                "reason": failure.reason,
            },
            at=at,
        )
        return rollout.model_copy(
            update={
                **to,
                "failure": failure.kind,
                "failed_candidate_id": failure.candidate_id,
            }
        )


def _mark(change: Change, rollout_id: str, failure: CallFailure, more: Values) -> bool:
    """Mark the rollout as failed, unless its outcome is known by now. Whether it was marked."""
    marked = change.connection.execute(
        update(rollouts)
        .where(
            rollouts.c.session_id == change.session_id,
            rollouts.c.rollout_id == rollout_id,
            rollouts.c.candidate_id == failure.candidate_id,
            rollouts.c.failure.is_(None),
            rollouts.c.reward_number.is_(None),
            rollouts.c.given_up_at.is_(None),
        )
        .values(
            failure=failure.kind,
            failed_candidate_id=failure.candidate_id,
            failure_shares=failure.shares,
            **more,
        )
    )
    return bool(marked.rowcount)


def _count_failure(
    connection: Connection, failure: CallFailure, *, rollouts: int, missing: int
) -> None:
    """For the candidate that failed, with these changes of its other counters."""
    values: Values = {
        "rollouts": candidates.c.rollouts + rollouts,
        "missing": candidates.c.missing + missing,
        "failures": candidates.c.failures + 1,
        "last_failure": failure.reason,
    }
    room = failure.demonstration_room
    if room is not None:
        known = func.coalesce(candidates.c.demonstration_room, room)
        values["demonstration_room"] = case((known < room, known), else_=room)
    connection.execute(
        update(candidates).where(candidates.c.candidate_id == failure.candidate_id).values(values)
    )


def awaiting_rewards(connection: Connection) -> tuple[str, ...]:
    """Return the ids of the sessions with rollouts that are neither rewarded nor given up.

    It reads the row of every session: for work in the background.
    """
    settled = sessions.c.rewards + sessions.c.missing
    awaiting = select(sessions.c.session_id).where(sessions.c.rollouts > settled)
    return tuple(connection.scalars(awaiting))


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
    for count in chain([1], repeat(_ROWS_AT_ONCE)):
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
