"""Rewards: attaching them to rollouts, and the promotion checks that follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import (
    InputInvalid,
    MiproError,
    RolloutNotFound,
    SessionEnded,
    StoreFailed,
)
from prefect_mipro.models.base import ID_CHARACTERS
from prefect_mipro.models.judgements import within
from prefect_mipro.models.names import identifier, short_text
from prefect_mipro.models.rollouts import (
    Reward,
    RewardInfo,
    RewardReceipt,
    RewardRequest,
    Rollout,
    RolloutOrder,
    RolloutReport,
    Trace,
)
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.privacy import EXAMPLE_KEYS, Redaction
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.session_cache import SessionCache
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.watch import Telemetry

EXPECTED_KEYS = ("expected", "expected_output")

log = logging.getLogger(__name__)


class Rollouts:
    """The rollouts of all sessions."""

    def __init__(
        self,
        store: Store,
        live: SessionCache,
        checks: PromotionChecks,
        proposals: Proposals,
        redaction: Redaction,
        journal: Journal,
        *,
        telemetry: Telemetry,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._live = live
        self._checks = checks
        self._proposals = proposals
        self._redaction = redaction
        self._journal = journal
        self._telemetry = telemetry
        self._clock = clock
        self._new_id = new_id

    async def find(self, session_id: str, rollout_id: str) -> Rollout:
        """A rollout that has been served. Raises SessionNotFound or RolloutNotFound."""
        rollout = await self._store.rollout(session_id, rollout_id)
        if rollout is None:
            raise RolloutNotFound(f"session {session_id} has served no rollout {rollout_id!r}")
        return rollout

    async def reports(
        self, session_id: str, *, order: RolloutOrder, limit: int
    ) -> tuple[RolloutReport, ...]:
        """Rewarded rollouts, the newest or the worst first. Raises SessionNotFound."""
        await self._journal.flush()
        return await self._store.rollout_reports(session_id, order=order, limit=limit)

    async def traces(self, session_id: str, rollout_or_trace_id: str) -> tuple[Trace, ...]:
        """The calls of a rollout, or one call by its id.

        Raises RolloutNotFound where there is neither, or its calls are kept no longer.
        """
        await self._journal.flush()
        found = await self._store.traces_of(session_id, rollout_or_trace_id)
        if not found:
            raise RolloutNotFound(
                f"session {session_id} has recorded no call of a rollout {rollout_or_trace_id!r}, "
                "and none with this id"
            )
        return found

    async def reward(
        self, session_id: str, request: RewardRequest, *, request_key: str | None = None
    ) -> RewardReceipt:
        """Count a reward, then check the evidence."""
        with self._telemetry.reward(session_id, request.rollout_id) as watched:
            receipt = await self._rewarded(session_id, request, request_key)
            watched.taken(receipt)
        return receipt

    async def _rewarded(
        self, session_id: str, request: RewardRequest, request_key: str | None
    ) -> RewardReceipt:
        live = await self._live.of(session_id)
        session = live.session
        if session.state is SessionState.CANCELLED:
            raise SessionEnded(
                f"session {session_id} is cancelled and takes no rewards; create another session"
            )
        told = self._reward_of(session, live.config, request)
        reward = self._redaction.reward(told, live.config)
        attached = await self._store.add_reward(reward, request_key=request_key)
        if request.stop:
            await self._store.set_state(
                session_id,
                SessionState.SUCCEEDED,
                at=self._clock(),
                stop_reason="stop was sent with a reward",
            )
        elif not attached.duplicate and not session.state.final:
            # The reward is counted by now, whatever fails here.
            await self._checks.check(session_id)
            self._proposals.consider(session_id)
        stored = attached.reward
        return RewardReceipt(
            status="accepted",
            session_id=session_id,
            rollout_id=stored.rollout_id,
            candidate_id=stored.candidate_id,
            reward=stored.value,
            attached=stored.candidate_id is not None,
            duplicate=attached.duplicate,
            prompt_applied=attached.applied,
        )

    def _reward_of(self, session: Session, config: MiproConfig, request: RewardRequest) -> Reward:
        told = RewardInfo.parse(request.reward_info)
        score = within(told.score, config.mipro.reward_range)
        metadata = request.metadata or {}
        return Reward(
            reward_id=self._new_id("reward"),
            session_id=session.session_id,
            rollout_id=_named(identifier, "rollout_id", request.rollout_id),
            candidate_id=_named(identifier, "candidate_id", request.candidate_id),
            correlation_id=_named(short_text, "correlation_id", request.correlation_id)
            or session.correlation_id,
            score=score,
            value=config.mipro.scaled(score),
            feedback=told.feedback,
            expected=_first_text(metadata, EXPECTED_KEYS),
            example_id=_named(_not_long, "the example id", _first_text(metadata, EXAMPLE_KEYS)),
            trace_ref=_named(short_text, "trace_ref", request.trace_ref),
            # Older clients have no argument for it.
            shareable=bool(request.shareable) or metadata.get("shareable") is True,
            artifact=request.artifact,
            metadata=request.metadata,
            received_at=self._clock(),
        )


def _named(check: Callable[[str, str], str], name: str, value: str | None) -> str | None:
    """The value if `check` accepts it, None where there is none. Raises InputInvalid."""
    return check(name, value) if value else None


def _not_long(name: str, value: str) -> str:
    """An example's id: of any characters, but not too long for an index."""
    if len(value) > ID_CHARACTERS:
        raise InputInvalid(f"{name} has {len(value)} characters; it may have {ID_CHARACTERS}")
    return value


def _first_text(metadata: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of these entries that is text or a whole number, as text."""
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


class PromotionChecks:
    """Checks of the evidence after rewards, one at a time for each session.

    Rewards that come while a check is under way share the next one, which sees all of them: a flood
    of rewards does not cost a check each.
    """

    def __init__(self, live: SessionCache, promotion: Promotion, journal: Journal) -> None:
        self._live = live
        self._promotion = promotion
        self._journal = journal
        self._failed: set[str] = set()
        self._begun: dict[str, asyncio.Task[None]] = {}
        self._next: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def begin(self, session_id: str) -> None:
        """Check in the background: a call of the session has failed because of its prompt."""
        self._failed.add(session_id)
        if session_id not in self._begun:
            self._begun[session_id] = asyncio.create_task(self._check_failures(session_id))

    async def settle(self) -> None:
        """Wait until no check in the background is under way."""
        await asyncio.gather(*self._begun.values(), return_exceptions=True)

    async def close(self) -> None:
        """Give up the checks in the background. Later ones see the same facts."""
        for task in self._begun.values():
            task.cancel()
        await self.settle()

    async def check(self, session_id: str) -> None:
        """Return once the rewards stored by now have been checked."""
        upcoming = self._next.get(session_id)
        if upcoming is None:
            upcoming = self._next[session_id] = asyncio.create_task(self._check(session_id))
        # Not this reward alone may wait for it.
        await asyncio.shield(upcoming)

    async def _check_failures(self, session_id: str) -> None:
        """Check until no failure is left; failures that come meanwhile share the next check."""
        try:
            while session_id in self._failed:
                self._failed.discard(session_id)
                await self._journal.flush()
                self._live.forget(session_id)
                await self.check(session_id)
        except MiproError as error:
            log.warning(
                "failures_not_considered",
                extra={"session_id": session_id, "reason": error.message},
            )
        finally:
            del self._begun[session_id]

    async def _check(self, session_id: str) -> None:
        turn = self._turns.get(session_id)
        if turn is None:
            turn = self._turns[session_id] = asyncio.Lock()
        async with turn:
            del self._next[session_id]
            try:
                await self._promotion.consider(await self._live.of(session_id))
            except StoreFailed as error:
                log.warning("evidence_not_considered", extra={"reason": error.message})
