"""Rollouts that have been served, and the rewards that come back for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import InputInvalid, RolloutNotFound, SessionEnded
from prefect_mipro.models.base import ID_CHARACTERS
from prefect_mipro.models.judgements import within
from prefect_mipro.models.names import identifier, short_text
from prefect_mipro.models.rollouts import (
    Reward,
    RewardInfo,
    RewardReceipt,
    RewardRequest,
    Rollout,
)
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.server.services.identity import Clock, NewId
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.services.looks import Looks
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.redaction import EXAMPLE_KEYS, Redaction
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.watch import Telemetry

EXPECTED_KEYS = ("expected", "expected_output")


class Rollouts:
    """The rollouts of all sessions."""

    def __init__(
        self,
        store: Store,
        live: Live,
        looks: Looks,
        proposals: Proposals,
        redaction: Redaction,
        *,
        telemetry: Telemetry,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._live = live
        self._looks = looks
        self._proposals = proposals
        self._redaction = redaction
        self._telemetry = telemetry
        self._clock = clock
        self._new_id = new_id

    async def find(self, session_id: str, rollout_id: str) -> Rollout:
        """A rollout that has been served. Raises SessionNotFound or RolloutNotFound."""
        rollout = await self._store.rollout(session_id, rollout_id)
        if rollout is None:
            raise RolloutNotFound(f"session {session_id} has served no rollout {rollout_id!r}")
        return rollout

    async def reward(
        self, session_id: str, request: RewardRequest, *, request_key: str | None = None
    ) -> RewardReceipt:
        """Count a reward, then let the optimizer look at it."""
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
            await self._looks.look(session_id)
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
    """The value if it is such a name, None where there is none. Raises InputInvalid."""
    return check(name, value) if value else None


def _not_long(name: str, value: str) -> str:
    """A row's own id may be of any characters, but databases index no long ones."""
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
