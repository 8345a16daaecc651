"""Duels: opened, observed, ended."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from prefect_mipro.errors import NotFound
from prefect_mipro.models.candidates import Duel, DuelObservation, DuelState
from prefect_mipro.server.store.changes import changing, check_candidates, check_session
from prefect_mipro.server.store.rows import duel_record
from prefect_mipro.server.store.sessions import promote
from prefect_mipro.server.store.tables import dueled, duels, rollouts


def newest(connection: Connection, session_id: str) -> Duel | None:
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
    connection: Connection, session_id: str, number: int
) -> tuple[DuelObservation, ...]:
    query = (
        select(rollouts.c.candidate_id, rollouts.c.reward, rollouts.c.predicted_reward)
        .where(rollouts.c.session_id == session_id, rollouts.c.duel_number == number, dueled)
        .order_by(rollouts.c.reward_number)
    )
    duel = _read_duel(connection, session_id, number)
    rows = connection.execute(query).all()
    return tuple(
        DuelObservation(
            is_challenger=candidate_id == duel.challenger_id,
            reward=reward,
            predicted_reward=predicted_reward,
        )
        for candidate_id, reward, predicted_reward in rows
    )


def end(
    connection: Connection,
    session_id: str,
    number: int,
    state: DuelState,
    *,
    at: datetime,
    reason: str,
) -> None:
    with changing(connection, session_id) as change:
        duel = _read_duel(connection, session_id, number)
        if duel.state is not DuelState.RUNNING:
            return
        connection.execute(
            update(duels)
            .where(duels.c.session_id == session_id, duels.c.number == number)
            .values(state=state, ended_at=at)
        )
        change.record(
            "mipro.duel.closed",
            f"duel {number} {state}: {reason}",
            data={
                "number": number,
                "state": state,
                "reason": reason,
                "champion_id": duel.champion_id,
                "challenger_id": duel.challenger_id,
                "rollouts": duel.rollouts,
                "rewards": duel.rewards,
            },
            at=at,
        )
        if state is DuelState.WON:
            promote(change, duel.challenger_id, at=at, reason=reason)


def _read_duel(connection: Connection, session_id: str, number: int) -> Duel:
    query = select(duels).where(duels.c.session_id == session_id, duels.c.number == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        check_session(connection, session_id)
        raise NotFound(f"session {session_id!r} has no duel {number}; open it first")
    return duel_record(row)
