"""Assignment: the candidate that a rollout is pinned to, or a new choice.

Where the database is this server's alone, a pin is written while the model is asked already, and
its call waits for it only before it answers: no call is longer for its pin, and no answer goes out
whose rollout is not pinned. The call waits first where others share the database, because one of
them may have pinned the rollout, and where the pin may fail: a model that is asked in vain costs
money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.rollouts import CallFailure, Rollout
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.optimizer.selection import Choice, choose
from prefect_mipro.server.ids import Clock
from prefect_mipro.server.services.beliefs import Beliefs, Chance
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.session_cache import (
    NOTHING,
    LiveSession,
    Pinning,
    PromptCache,
    Reserved,
    SessionCache,
)
from prefect_mipro.server.store.store import Store

FindCandidate = Callable[[str], Awaitable[Candidate]]


class Assigned:
    """The candidate of a call, and the pin of its rollout, which may be under way.

    `shares` are the candidates' shares of the traffic when it was pinned, as far as they are known.
    `if_removed` is the rollout to pin where another server has removed the one of a remembered pin;
    `None` if the pin was made or read for this call.
    """

    __slots__ = ("_find", "_pin", "candidate", "if_removed", "shares")
    _find: FindCandidate

    def __init__(
        self,
        candidate: Candidate,
        shares: Mapping[str, float],
        *,
        if_removed: Rollout | None = None,
    ) -> None:
        self.candidate = candidate
        self.shares = shares
        self.if_removed = if_removed
        self._pin: asyncio.Future[Rollout] | None = None

    @classmethod
    def while_pinning(
        cls,
        candidate: Candidate,
        pin: asyncio.Future[Rollout],
        shares: Mapping[str, float],
        *,
        find: FindCandidate,
    ) -> Assigned:
        """An assignment that is final once its pin is stored."""
        assigned = cls(candidate, shares)
        assigned._pin, assigned._find = pin, find
        return assigned

    async def settled(self) -> Candidate:
        """The candidate that the rollout is pinned to, once the pin is stored.

        It is another one where the rollout was pinned so long ago that this server does not
        remember it, or where another server was first. Raises StoreFailed where it cannot be
        pinned.
        """
        if self._pin is None:
            return self.candidate
        # Not this call alone may wait for it.
        pinned = self._pin.result() if self._pin.done() else await asyncio.shield(self._pin)
        if pinned.candidate_id == self.candidate.candidate_id:
            return self.candidate
        return await self._find(pinned.candidate_id)

    def is_pinned_to(self, candidate: Candidate) -> bool:
        """Whether the rollout is known to be pinned to that candidate."""
        pin = self._pin
        if pin is None:
            return candidate is self.candidate
        if not pin.done() or pin.cancelled() or pin.exception():
            return False
        return pin.result().candidate_id == candidate.candidate_id


class Assignments:
    """Assignment of candidates to the rollouts of all sessions."""

    def __init__(
        self,
        store: Store,
        prompts: PromptCache,
        live: SessionCache,
        beliefs: Beliefs,
        promotion: Promotion,
        journal: Journal,
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._live = live
        self._beliefs = beliefs
        self._promotion = promotion
        self._journal = journal
        self._clock = clock

    async def of(
        self,
        live: LiveSession,
        rollout_id: str,
        *,
        correlation_id: str | None,
        example_id: str | None,
        applied: bool | None,
        own: Reserved = NOTHING,
        trust_memory: bool = True,
    ) -> Assigned:
        """The pinned candidate, or a new choice. `own` is what the call has reserved.

        `applied` says whether a candidate's prompt has a place in the call's messages, and is kept
        with the pin: a reward that comes before the call's trace is in the store knows it. Without
        `trust_memory` the pin is looked up where other servers may have removed it.
        """
        while True:
            pinned_id = self._live.pinned(live.session, rollout_id)
            if pinned_id is not None and (trust_memory or not self._store.shared):
                candidate = await self._in_place_of(live, pinned_id)
                rollout = self._rollout(
                    live,
                    rollout_id,
                    _certain(candidate.candidate_id),
                    correlation_id=correlation_id,
                    example_id=example_id,
                    applied=applied,
                )
                return Assigned(candidate, live.shares, if_removed=rollout)
            pinning = live.pinning.get(rollout_id)
            if pinning is None:
                # Of the calls of one rollout that come at once, one chooses.
                choosing = live.choosing.get(rollout_id)
                if choosing is not None:
                    await choosing.wait()
                    continue
                pinning = await self._pin(
                    live, rollout_id, correlation_id, example_id, applied, own
                )
            candidate = await self._prompts.candidate(pinning.candidate_id)
            assigned = Assigned.while_pinning(
                candidate,
                pinning.rollout,
                pinning.shares,
                find=partial(self._in_place_of, live),
            )
            if self._store.shared or self._journal.pins_first:
                return Assigned(await assigned.settled(), pinning.shares)
            return assigned

    async def _in_place_of(self, live: LiveSession, pinned_id: str) -> Candidate:
        """The candidate of a pinned rollout: the champion where its own was withdrawn."""
        withdrawn = pinned_id in live.withdrawn_ids
        return await self._prompts.candidate(live.champion_id if withdrawn else pinned_id)

    async def fall_back(
        self, live: LiveSession, rollout_id: str, failure: CallFailure, candidate: Candidate
    ) -> None:
        """Give the rollout of a refused call to the candidate that answers in its place."""
        await self._store.fall_back(
            live.session_id, rollout_id, failure, candidate.candidate_id, at=self._clock()
        )
        self._live.remember_pin(live.session, rollout_id, candidate.candidate_id)

    async def _pin(
        self,
        live: LiveSession,
        rollout_id: str,
        correlation_id: str | None,
        example_id: str | None,
        applied: bool | None,
        own: Reserved,
    ) -> Pinning:
        """Choose a candidate, and begin to pin it, unless the rollout was pinned before."""
        self._journal.require_pins()
        chosen = live.choosing[rollout_id] = asyncio.Event()
        try:
            choice = await self._choose(live, rollout_id, example_id, own)
            rollout = self._rollout(
                live,
                rollout_id,
                choice,
                correlation_id=correlation_id,
                example_id=example_id,
                applied=applied,
            )
            live.serve(choice.candidate_id)
            pin = self._journal.pin(rollout)
            pinning = Pinning(choice.candidate_id, pin, live.shares)
            live.pinning[rollout_id] = pinning
            pin.add_done_callback(partial(self._pinned, live, rollout_id))
            return pinning
        finally:
            del live.choosing[rollout_id]
            chosen.set()

    def _rollout(
        self,
        live: LiveSession,
        rollout_id: str,
        choice: Choice,
        *,
        correlation_id: str | None,
        example_id: str | None,
        applied: bool | None,
    ) -> Rollout:
        return Rollout(
            session_id=live.session_id,
            rollout_id=rollout_id,
            candidate_id=choice.candidate_id,
            correlation_id=correlation_id or live.session.correlation_id,
            example_id=example_id,
            propensity=choice.propensity,
            duel_number=choice.duel_number,
            predicted_reward=choice.predicted_reward,
            pinned_at=self._clock(),
            applied=applied,
        )

    def _pinned(self, live: LiveSession, rollout_id: str, pin: asyncio.Future[Rollout]) -> None:
        del live.pinning[rollout_id]
        if not pin.cancelled() and pin.exception() is None:
            pinned = pin.result()
            self._live.remember_pin(live.session, rollout_id, pinned.candidate_id)
            live.rollouts = max(live.rollouts, pinned.position or 0)

    async def _choose(
        self, live: LiveSession, rollout_id: str, example_id: str | None, own: Reserved
    ) -> Choice:
        session, config = live.session, live.config
        if session.state.final or not await self._promotion.has_room(live, own):
            return _certain(session.champion_id)
        duel = live.running_duel
        block = config.mipro.online_rollouts_per_candidate
        serving_id = live.serving_candidate_id
        if serving_id and duel is None and live.serving_rollouts % block:
            snapshot = await self._beliefs.recent(live)
            if serving_id in snapshot.plan.of and serving_id not in snapshot.probation:
                return _certain(serving_id)
        deviation = 0.0
        if duel and example_id:
            seen = await self._store.example_rewards(live.session_id, example_id)
            deviation = expected_deviation(*seen)
        snapshot = await self._beliefs.recent(live)
        choice = choose(
            snapshot.plan,
            duel=duel,
            expected_deviation=deviation,
            settings=config.mipro.selection,
            promotion=config.mipro.promotion,
            rng=Chance(config, live.session_id, rollout_id),
        )
        live.shares = choice.propensities
        return choice


def _certain(candidate_id: str) -> Choice:
    """An assignment without a draw: the session has ended, or the candidate was chosen before."""
    return Choice(candidate_id, propensity=1.0, propensities={candidate_id: 1.0})
