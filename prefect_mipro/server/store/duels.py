"""Duels and champions: a duel opened, observed and ended; a champion made."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, case, func, insert, select, update

from prefect_mipro.errors import NotFound
from prefect_mipro.models.candidates import Duel, DuelObservation, DuelState
from prefect_mipro.server.store.changes import (
    Change,
    changing,
    check_candidates,
    check_session,
    read_session,
)
from prefect_mipro.server.store.failures import watermark
from prefect_mipro.server.store.rows import duel_record
from prefect_mipro.server.store.schema import (
    candidates,
    dueled,
    duels,
    failed,
    is_evidence,
    retired,
    rollouts,
)

# What a rollout counts for whose call failed because of the prompt.
FAILED_REWARD = 0.0


def newest(connection: Connection, session_id: str) -> Duel | None:
    """The session's newest duel, if it ever had one."""
    query = (
        select(duels)
        .where(duels.c.session_id == session_id)
        .order_by(duels.c.number.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    if row is None:
        check_session(connection, session_id)
    return None if row is None else duel_record(row)


def begin(connection: Connection, duel: Duel) -> None:
    """Insert a duel. Raises Conflict if its number is taken."""
    with changing(connection, duel.session_id) as change:
        check_candidates(connection, duel.session_id, duel.champion_id, duel.challenger_id)
        connection.execute(insert(duels), dict(duel))
        change.record(
            "mipro.duel.opened",
            f"duel {duel.number}: {duel.challenger_id} challenges {duel.champion_id}",
            data={
                "number": duel.number,
                "champion_id": duel.champion_id,
                "challenger_id": duel.challenger_id,
                "predicted_lift": duel.predicted_lift,
            },
            at=duel.started_at,
        )


def observations(
    connection: Connection, session_id: str, number: int, *, impute: float | None = None
) -> tuple[DuelObservation, ...]:
    """The duel's settled rollouts in the order of the pins, up to the session's watermark.

    A rollout that was given up is left out, or counts as the scaled reward `impute`, even if its
    reward came later.
    """
    duel = _read_duel(connection, session_id, number)
    # Read first: what is settled stays so.
    settled = watermark(connection, session_id)
    in_time = rollouts.c.given_up_at.is_(None)
    chosen_id = func.coalesce(rollouts.c.failed_candidate_id, rollouts.c.candidate_id)
    fell_back = chosen_id != rollouts.c.candidate_id
    query = (
        select(
            chosen_id,
            case(
                (fell_back, FAILED_REWARD),
                (in_time, rollouts.c.reward),
                (failed, FAILED_REWARD),
                else_=impute,
            ),
            rollouts.c.predicted_reward,
        )
        .where(
            rollouts.c.session_id == session_id,
            dueled,
            rollouts.c.duel_number == number,
            rollouts.c.position <= settled,
            is_evidence,
        )
        .order_by(rollouts.c.position)
    )
    if impute is None:
        query = query.where(in_time | failed)
    return tuple(
        DuelObservation(
            is_challenger=candidate_id == duel.challenger_id,
            reward=reward,
            predicted_reward=predicted_reward,
        )
        for candidate_id, reward, predicted_reward in connection.execute(query)
    )


def awaited(connection: Connection, session_id: str, number: int) -> int:
    """How many of the duel's rollouts lie beyond the watermark: they are not observations yet."""
    query = (
        select(func.count())
        .select_from(rollouts)
        .where(
            rollouts.c.session_id == session_id,
            dueled,
            rollouts.c.duel_number == number,
            rollouts.c.position > watermark(connection, session_id),
            is_evidence,
        )
    )
    return connection.execute(query).scalar_one()


def end(
    connection: Connection,
    session_id: str,
    number: int,
    state: DuelState,
    *,
    at: datetime,
    reason: str,
) -> None:
    """End a running duel; if it is won, its challenger becomes champion. Once ended it stays so."""
    with changing(connection, session_id) as change:
        duel = _read_duel(connection, session_id, number)
        if duel.state is not DuelState.RUNNING:
            return
        _end(change, duel, state, at=at, reason=reason)
        if state is DuelState.WON:
            change.set(promotions=change["promotions"] + 1)
            promote(change, duel.challenger_id, at=at, reason=reason)


def abandon(change: Change, *, at: datetime, reason: str) -> None:
    """End the session's duel without a winner, if one is running."""
    duel = newest(change.connection, change.session_id)
    if duel is not None and duel.state is DuelState.RUNNING:
        _end(change, duel, DuelState.ABANDONED, at=at, reason=reason)


def successor(connection: Connection, session_id: str, leaving: Collection[str] = ()) -> str:
    """The most recent duel winner still in play and not in `leaving`, else the baseline."""
    query = (
        select(duels.c.challenger_id)
        .join(candidates, candidates.c.candidate_id == duels.c.challenger_id)
        .where(
            duels.c.session_id == session_id,
            duels.c.state == DuelState.WON,
            candidates.c.retired_at.is_(None),
            candidates.c.candidate_id.not_in(leaving),
        )
        .order_by(duels.c.number.desc())
        .limit(1)
    )
    return connection.scalar(query) or read_session(connection, session_id).baseline_id


def promote(change: Change, candidate_id: str, *, at: datetime, reason: str) -> None:
    """Make the candidate the session's champion, and serve it again if it was retired."""
    _reactivate(change, candidate_id, at=at, reason=reason)
    previous = change["champion_id"]
    if previous == candidate_id:
        return
    change.set(champion_id=candidate_id, promoted_at=change["rollouts"])
    change.record(
        "mipro.champion.promoted",
        f"{candidate_id} takes the place of {previous}: {reason}",
        data={"candidate_id": candidate_id, "previous_id": previous, "reason": reason},
        at=at,
    )


def _reactivate(change: Change, candidate_id: str, *, at: datetime, reason: str) -> None:
    updated = change.connection.execute(
        update(candidates)
        .where(candidates.c.candidate_id == candidate_id, retired)
        .values(retired_at=None, retired_reason=None, withdrawn_at=None)
    )
    if updated.rowcount:
        change.record(
            "mipro.candidate.reactivated",
            f"{candidate_id} is in play again: {reason}",
            data={"candidate_id": candidate_id, "reason": reason},
            at=at,
        )


def _end(change: Change, duel: Duel, state: DuelState, *, at: datetime, reason: str) -> None:
    change.connection.execute(
        update(duels)
        .where(duels.c.session_id == duel.session_id, duels.c.number == duel.number)
        .values(state=state, ended_at=at)
    )
    change.record(
        "mipro.duel.closed",
        f"duel {duel.number} {state}: {reason}",
        data={
            "number": duel.number,
            "state": state,
            "reason": reason,
            "champion_id": duel.champion_id,
            "challenger_id": duel.challenger_id,
            "rollouts": duel.rollouts,
            "rewards": duel.rewards,
        },
        at=at,
    )


def _read_duel(connection: Connection, session_id: str, number: int) -> Duel:
    query = select(duels).where(duels.c.session_id == session_id, duels.c.number == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        check_session(connection, session_id)
        raise NotFound(f"session {session_id!r} has no duel {number}; open it first")
    return duel_record(row)
