"""Promotion: when a duel begins and ends, and when a session has had enough."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from prefect_mipro.config import MiproConfig, PromotionSettings
from prefect_mipro.errors import Conflict, SessionNotFound, StoreFailed
from prefect_mipro.models.candidates import Candidate, Duel, DuelState, Statistics
from prefect_mipro.models.levers import LeverName
from prefect_mipro.models.sessions import Session, SessionState, Spending
from prefect_mipro.optimizer.failures import RETIRE_EVIDENCE
from prefect_mipro.optimizer.promotion import challenger, verdict
from prefect_mipro.optimizer.stopping import Progress, has_budget, has_goal, reached, used_up
from prefect_mipro.server.ids import Clock
from prefect_mipro.server.services.beliefs import Beliefs, Snapshot, generator
from prefect_mipro.server.services.session_cache import LiveSession, PromptCache, Reserved
from prefect_mipro.server.store.store import Store

# How often overdue rewards are looked for: in rewards of a session, and in seconds for all.
GIVE_UP_EVERY = 8
GIVE_UP_SECONDS = 60.0

log = logging.getLogger(__name__)


class Promotion:
    """The way from challenger to champion, for all sessions."""

    def __init__(
        self, store: Store, prompts: PromptCache, beliefs: Beliefs, *, clock: Clock
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._beliefs = beliefs
        self._clock = clock

    async def consider(self, live: LiveSession) -> None:
        """Look at the evidence after a reward: end the duel, begin one, or end the session."""
        session, config = live.as_session(), live.config
        if session.rewards - live.rewards_at_give_up >= GIVE_UP_EVERY:
            live.rewards_at_give_up = session.rewards
            await self.give_up(session)
        if live.failures and await self._retire_failing(session, await self._beliefs.recent(live)):
            # The next check finds the session without them.
            session = await self._store.session(session.session_id)
        elif config.mipro.promotion.enabled and session.state is SessionState.RUNNING:
            snapshot = await self._beliefs.recent(live)
            session = await self._judge(session, config, snapshot, live.duel)
        await self._end_if_done(session, live)

    async def _retire_failing(self, session: Session, snapshot: Snapshot) -> bool:
        """Take the candidates out of play that fail more often than the baseline beyond chance."""
        session_id = session.session_id
        failing = [
            candidate
            for candidate in snapshot.active
            if snapshot.failure_evidence.get(candidate.candidate_id, 0.0) >= RETIRE_EVIDENCE
        ]
        reasons = {candidate: _why_failing(candidate) for candidate in failing}
        for candidate in await self._too_long_as_well(session_id, snapshot, failing):
            reasons[candidate] = "its demonstrations are no shorter than some that do not fit"
        for candidate, reason in reasons.items():
            if candidate.candidate_id == session.champion_id:
                await self._store.set_champion(
                    session_id, session.baseline_id, at=self._clock(), reason=reason
                )
            await self._store.retire(
                session_id,
                [candidate.candidate_id],
                at=self._clock(),
                reason=reason,
                ends_duel=True,
            )
            log.warning(
                "candidate_retired",
                extra={
                    "session_id": session_id,
                    "candidate_id": candidate.candidate_id,
                    "reason": reason,
                },
            )
        if failing:
            self._beliefs.forget(session_id)
        return bool(failing)

    async def _too_long_as_well(
        self, session_id: str, snapshot: Snapshot, failing: Sequence[Candidate]
    ) -> list[Candidate]:
        """Candidates never answered whose demonstrations are as long as some that do not fit."""
        too_long = [c for c in failing if c.demonstration_room is not None]
        if not too_long:
            return []
        lengths = {
            version.version: sum(len(d.input) + len(d.output) for d in version.demonstrations)
            for version in await self._store.levers(session_id)
            if version.lever is LeverName.DEMONSTRATIONS
        }
        shortest = min(lengths[candidate.demonstrations_version] for candidate in too_long)
        return [
            candidate
            for candidate in snapshot.active
            if lengths[candidate.demonstrations_version] >= max(shortest, 1)
            and not candidate.statistics.answered_calls
            and candidate not in failing
        ]

    async def give_up_overdue(self) -> None:
        """Count overdue rewards of all sessions, for those whose traffic has ended meanwhile."""
        for session_id in await self._store.awaiting_rewards():
            with suppress(SessionNotFound):
                await self.give_up(await self._store.session(session_id))

    async def give_up(self, session: Session) -> None:
        """Count overdue rewards as missing. Put off while the database takes no writes."""
        settings = self._prompts.config(session).mipro.missing_rewards
        now = self._clock()
        try:
            await self._store.give_up(
                session.session_id,
                after_rewards=settings.after_rewards,
                pinned_before=now - timedelta(seconds=settings.after_seconds),
                at=now,
            )
        except StoreFailed as error:
            log.warning("missing_rewards_not_counted", extra={"reason": error.message})

    async def has_room(self, live: LiveSession, own: Reserved) -> bool:
        """Whether the budgets allow one more rollout to explore, beside the calls under way.

        `own` is what it has reserved itself. The session ends where the budgets are used up. While
        the calls under way may use them up, it goes on, but with its champion only.
        """
        if not live.has_budget:
            return True
        rules = live.config.prompt_learning
        session = live.as_session()
        progress = self._progress(session, live.config, live.totals)
        if reason := used_up(rules, progress):
            await self._end(session, reason)
            return False
        others = live.reserved - own
        at_most = replace(
            progress,
            rollouts=progress.rollouts + live.unpinned - 1,
            tokens=progress.tokens + others.tokens,
            cost_usd=None if progress.cost_usd is None else progress.cost_usd + others.cost_usd,
        )
        return not used_up(rules, at_most)

    async def _end_if_done(self, session: Session, live: LiveSession) -> None:
        """End the session when it has reached a goal, or used a budget up with all rewards in."""
        config = live.config
        rules = config.prompt_learning
        if session.state.final or not (has_budget(rules) or has_goal(rules)):
            return
        totals = await self._store.totals(session.session_id)
        progress = self._progress(session, config, live.totals)
        reason = "" if totals.in_flight else used_up(rules, progress)
        if not reason and has_goal(rules):
            duel = await self._store.duel(session.session_id)
            if duel is None or duel.state is not DuelState.RUNNING:
                value = await self._exploration_value(session, live)
                reason = reached(rules, replace(progress, exploration_value=value))
        await self._end(session, reason)

    async def _end(self, session: Session, reason: str) -> Session:
        if not reason:
            return session
        now = self._clock()
        ended = await self._store.set_state(
            session.session_id, SessionState.SUCCEEDED, at=now, stop_reason=reason
        )
        if ended.updated_at == now:  # of calls that come at once, one ends it
            log.warning(
                "session_ended",
                extra={
                    "session_id": session.session_id,
                    "reason": reason,
                    "hint": "it serves its champion and learns no more",
                },
            )
        return ended

    async def _judge(
        self, session: Session, config: MiproConfig, snapshot: Snapshot, duel: Duel | None
    ) -> Session:
        """End the running duel or begin one. Returns the session as it is then."""
        settings = config.mipro.promotion
        if duel and duel.state is DuelState.RUNNING:
            observations = await self._store.duel_observations(
                session.session_id, duel.number, impute=config.mipro.imputed_reward
            )
            state = verdict(
                duel,
                observations,
                snapshot.belief,
                active=snapshot.active_ids,
                awaited=await self._awaited(duel, settings),
                settings=settings,
            )
            if state is DuelState.RUNNING:
                return session
            await self._store.close_duel(
                session.session_id,
                duel.number,
                state,
                at=self._clock(),
                reason=f"duel {duel.number} was {state} after {len(observations)} rewards",
            )
            return await self._store.session(session.session_id)
        found = challenger(
            snapshot.belief,
            active=snapshot.active_ids,
            champion_id=session.champion_id,
            duel=duel,
            rollouts_now=session.rollouts,
            settings=settings,
        )
        if found is None:
            return session
        challenger_id, predicted_lift = found
        with suppress(Conflict):  # another reward opens it at the same moment
            await self._store.open_duel(
                Duel(
                    session_id=session.session_id,
                    number=duel.number + 1 if duel else 1,
                    champion_id=session.champion_id,
                    challenger_id=challenger_id,
                    predicted_lift=predicted_lift,
                    rollouts_before=session.rollouts,
                    started_at=self._clock(),
                )
            )
        return session

    async def _awaited(self, duel: Duel, settings: PromotionSettings) -> int:
        """The number of a duel's rewards that may still come, read where it makes a difference."""
        if duel.rollouts < settings.max_rollouts:
            return 0
        return await self._store.awaited_in_duel(duel.session_id, duel.number)

    def _progress(self, session: Session, config: MiproConfig, totals: Statistics) -> Progress:
        spent = spending(session, config, totals)
        return Progress(
            rollouts=session.rollouts,
            seconds=(self._clock() - session.created_at).total_seconds(),
            tokens=spent.tokens,
            cost_usd=spent.cost_usd,
            promotions=session.promotions,
            rollouts_since_promotion=session.rollouts - session.promoted_at,
        )

    async def _exploration_value(self, session: Session, live: LiveSession) -> float | None:
        """The exploration value; `None` where no rule asks for it or too little is known."""
        config = live.config
        if config.prompt_learning.termination_config.min_exploration_value is None:
            return None
        if session.rewards < config.mipro.promotion.min_rewards:
            return None
        snapshot = await self._beliefs.recent(live)
        if len(snapshot.active) < 2:
            return None
        rng = generator(config, session, session.rewards)
        return snapshot.belief.exploration_value(rng, active=snapshot.active_ids)


def _why_failing(candidate: Candidate) -> str:
    counted = candidate.statistics
    return (
        f"its prompt fails more often than the baseline: {counted.failures} of "
        f"{counted.calls} calls, the last with {candidate.last_failure}"
    )


def spending(session: Session, config: MiproConfig, totals: Statistics) -> Spending:
    """Tokens so far and their cost, where the config tells a price."""
    policy = totals.cost_usd_sum if config.has_prices else None
    proposer = config.proposer_cost_usd(
        prompt_tokens=session.proposer_prompt_tokens,
        completion_tokens=session.proposer_completion_tokens,
    )
    known = [cost for cost in (policy, proposer) if cost is not None]
    return Spending(
        prompt_tokens=totals.prompt_tokens,
        completion_tokens=totals.completion_tokens,
        proposer_prompt_tokens=session.proposer_prompt_tokens,
        proposer_completion_tokens=session.proposer_completion_tokens,
        cost_usd=sum(known) if known else None,
    )
