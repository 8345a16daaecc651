"""Promotion: when a duel begins and ends, and when a session has had its budget."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import Conflict
from prefect_mipro.models.candidates import Candidate, Duel, DuelState
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.optimizer.posterior import posterior
from prefect_mipro.optimizer.promotion import challenger, verdict
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.store.interface import Store


class Promotion:
    """The way from challenger to champion, for all sessions."""

    def __init__(self, store: Store, knowledge: Knowledge, *, clock: Clock) -> None:
        self._store = store
        self._knowledge = knowledge
        self._clock = clock

    async def consider(self, session_id: str) -> None:
        """Look at the evidence after a reward: end the duel, begin one, or end the session."""
        session = await self._store.session(session_id)
        config = self._knowledge.config(session)
        candidates = await self._store.candidates(session_id)
        if config.mipro.promotion.enabled and session.state is SessionState.RUNNING:
            await self._judge(session, config, candidates)
        if not any(c.statistics.in_flight for c in candidates):
            await self.end_if_exhausted(session)

    async def end_if_exhausted(self, session: Session) -> Session:
        """The session, ended now if a budget of its config is used up."""
        config = self._knowledge.config(session)
        limits = config.prompt_learning.termination_config
        if not (
            limits.max_rollouts
            or limits.max_tokens
            or limits.max_seconds
            or config.mipro.rollout.budget
        ):
            return session
        candidates = await self._store.candidates(session.session_id)
        reason = self._exhausted(session, config, candidates)
        if not reason:
            return session
        return await self._store.set_state(
            session.session_id, SessionState.SUCCEEDED, at=self._clock(), stop_reason=reason
        )

    async def _judge(
        self, session: Session, config: MiproConfig, candidates: Sequence[Candidate]
    ) -> None:
        settings = config.mipro.promotion
        belief = posterior([c.arm for c in candidates if c.active])
        duel = await self._store.duel(session.session_id)
        if duel and duel.state is DuelState.RUNNING:
            observations = await self._store.duel_observations(session.session_id, duel.number)
            state = verdict(duel, observations, belief, settings=settings)
            if state is not DuelState.RUNNING:
                await self._store.close_duel(
                    session.session_id,
                    duel.number,
                    state,
                    at=self._clock(),
                    reason=f"duel {duel.number} was {state} after {len(observations)} rewards",
                )
            return
        rollouts = sum(c.statistics.rollouts for c in candidates)
        found = challenger(
            belief,
            champion_id=session.champion_id,
            duel=duel,
            rollouts_now=rollouts,
            settings=settings,
        )
        if found is None:
            return
        challenger_id, predicted_lift = found
        try:
            await self._store.open_duel(
                Duel(
                    session_id=session.session_id,
                    number=duel.number + 1 if duel else 1,
                    champion_id=session.champion_id,
                    challenger_id=challenger_id,
                    predicted_lift=predicted_lift,
                    rollouts_before=rollouts,
                    started_at=self._clock(),
                )
            )
        except Conflict:
            return  # another reward opened it at the same moment

    def _exhausted(
        self, session: Session, config: MiproConfig, candidates: Sequence[Candidate]
    ) -> str:
        limits = config.prompt_learning.termination_config
        rollouts = sum(c.statistics.rollouts for c in candidates)
        tokens = sum(
            c.statistics.prompt_tokens + c.statistics.completion_tokens for c in candidates
        )
        seconds = (self._clock() - session.created_at).total_seconds()
        for name, used, limit in (
            ("termination_config.max_rollouts", rollouts, limits.max_rollouts),
            ("mipro.rollout.budget", rollouts, config.mipro.rollout.budget),
            ("termination_config.max_tokens", tokens, limits.max_tokens),
            ("termination_config.max_seconds", seconds, limits.max_seconds),
        ):
            if limit is not None and used >= limit:
                return f"{name} of {limit:g} is used up"
        return ""
