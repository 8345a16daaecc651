"""Duels: opened, observed, ended."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from prefect_mipro.errors import NotFound
from prefect_mipro.models.candidates import Duel, DuelObservation, DuelState
from prefect_mipro.server.store.changes import Subject, check_candidates, check_session
from prefect_mipro.server.store.rows import duel_record
from prefect_mipro.server.store.sessions import promote
from prefect_mipro.server.store.tables import dueled, duels, rollouts


class Duels(Subject):
    """The duels' share of the store."""

    async def duel(self, session_id: str) -> Duel | None:
        query = (
            select(duels)
            .where(duels.c.session_id == session_id)
            .order_by(duels.c.number.desc())
            .limit(1)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                await check_session(connection, session_id)
        return None if row is None else duel_record(row)

    async def open_duel(self, duel: Duel) -> None:
        async with self._changing(duel.session_id) as change:
            await check_candidates(
                change.connection, duel.session_id, duel.champion_id, duel.challenger_id
            )
            await change.connection.execute(insert(duels), dict(duel))
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

    async def duel_observations(self, session_id: str, number: int) -> tuple[DuelObservation, ...]:
        query = (
            select(rollouts.c.candidate_id, rollouts.c.reward, rollouts.c.predicted_reward)
            .where(rollouts.c.session_id == session_id, rollouts.c.duel_number == number, dueled)
            .order_by(rollouts.c.reward_number)
        )
        async with self._database.reading() as connection:
            duel = await _read_duel(connection, session_id, number)
            rows = (await connection.execute(query)).all()
        return tuple(
            DuelObservation(
                is_challenger=candidate_id == duel.challenger_id,
                reward=reward,
                predicted_reward=predicted_reward,
            )
            for candidate_id, reward, predicted_reward in rows
        )

    async def close_duel(
        self,
        session_id: str,
        number: int,
        state: DuelState,
        *,
        at: datetime,
        reason: str,
    ) -> None:
        async with self._changing(session_id) as change:
            duel = await _read_duel(change.connection, session_id, number)
            if duel.state is not DuelState.RUNNING:
                return
            await change.connection.execute(
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


async def _read_duel(connection: AsyncConnection, session_id: str, number: int) -> Duel:
    query = select(duels).where(duels.c.session_id == session_id, duels.c.number == number)
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        await check_session(connection, session_id)
        raise NotFound(f"session {session_id!r} has no duel {number}; open it first")
    return duel_record(row)
