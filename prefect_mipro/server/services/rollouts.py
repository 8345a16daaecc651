"""Rollouts: which candidate serves one, the call itself, and the reward that comes back."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import (
    CandidateNotFound,
    MiproError,
    RewardInvalid,
    RolloutNotFound,
    SessionEnded,
)
from prefect_mipro.models.candidates import Candidate, DuelState
from prefect_mipro.models.chat import ChatBody, ChatMessage
from prefect_mipro.models.rollouts import (
    Reward,
    RewardInfo,
    RewardReceipt,
    RewardRequest,
    Rollout,
)
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.optimizer.prompts import Applied, apply
from prefect_mipro.optimizer.selection import Choice, choose
from prefect_mipro.server.services.beliefs import Beliefs, generator
from prefect_mipro.server.services.calls import Call, Served
from prefect_mipro.server.services.identity import Clock, NewId
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.recording import Recorder
from prefect_mipro.server.store.interface import Store
from prefect_mipro.server.upstream.registry import Upstreams

EXPECTED_KEYS = ("expected", "expected_output")
EXAMPLE_KEYS = ("example_id", "seed")


class Rollouts:
    """The rollouts of all sessions."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        knowledge: Knowledge,
        beliefs: Beliefs,
        promotion: Promotion,
        proposals: Proposals,
        recorder: Recorder,
        *,
        clock: Clock,
        new_id: NewId,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._knowledge = knowledge
        self._beliefs = beliefs
        self._promotion = promotion
        self._proposals = proposals
        self._clock = clock
        self._new_id = new_id
        self._timer = timer
        self._recorder = recorder

    @asynccontextmanager
    async def serve(self, session: Session, call: Call) -> AsyncIterator[Served]:
        """Answer a call with its rollout's candidate. Leaving early cancels the upstream call.

        Errors after the choice name the candidate and the rollout in their `detail`.
        """
        config = self._knowledge.config(session)
        rollout_id = call.rollout_id or self._new_id("rollout")
        if call.candidate_id is None:
            candidate = await self.assign(
                session,
                rollout_id=rollout_id,
                correlation_id=call.correlation_id,
                example_id=call.example_id,
            )
        else:
            candidate = await self._candidate_of(session, call.candidate_id)
        applied = await self.prompt_of(
            session, candidate, call.body["messages"], example_id=call.example_id
        )
        body = _with_policy_defaults(call.body, config) | {"messages": list(applied.messages)}
        served: Served | None = None
        failure: MiproError | None = None
        started = self._timer()
        try:
            upstream = self._upstreams.named(config.policy.provider)
            async with upstream.chat(body) as reply:
                served = Served(candidate.candidate_id, rollout_id, reply)
                yield served
        except MiproError as error:
            failure = error
            error.detail = {
                "candidate_id": candidate.candidate_id,
                "rollout_id": rollout_id,
                "reason": error.detail,
            }
            raise
        finally:
            if call.candidate_id is None:
                await self._recorder.record(
                    candidate, rollout_id, applied, served, failure, self._timer() - started
                )

    async def assign(
        self,
        session: Session,
        *,
        rollout_id: str,
        correlation_id: str | None = None,
        example_id: str | None = None,
    ) -> Candidate:
        """The rollout's candidate: the pinned one, else one that is chosen and pinned now."""
        known = await self._store.rollout(session.session_id, rollout_id)
        if known is None:
            choice = await self._choose(session, rollout_id, example_id)
            known = await self._store.pin(
                Rollout(
                    session_id=session.session_id,
                    rollout_id=rollout_id,
                    candidate_id=choice.candidate_id,
                    correlation_id=correlation_id or session.correlation_id,
                    example_id=example_id,
                    propensity=choice.propensity,
                    duel_number=choice.duel_number,
                    predicted_reward=choice.predicted_reward,
                    pinned_at=self._clock(),
                )
            )
        return await self._store.candidate(known.candidate_id)

    async def prompt_of(
        self,
        session: Session,
        candidate: Candidate,
        messages: Sequence[ChatMessage],
        *,
        example_id: str | None = None,
    ) -> Applied:
        """The caller's messages with the candidate's prompt in them."""
        instruction, demonstrations = await self._knowledge.prompt_of(candidate)
        return apply(
            messages,
            prompt=self._knowledge.config(session).initial_prompt,
            instruction=instruction.text,
            demonstrations=demonstrations.demonstrations,
            example_id=example_id,
        )

    async def find(self, session_id: str, rollout_id: str) -> Rollout:
        """A rollout that has been served. Raises SessionNotFound or RolloutNotFound."""
        await self._store.session(session_id)
        rollout = await self._store.rollout(session_id, rollout_id)
        if rollout is None:
            raise RolloutNotFound(f"session {session_id} has served no rollout {rollout_id!r}")
        return rollout

    async def reward(
        self, session_id: str, request: RewardRequest, *, request_key: str | None = None
    ) -> RewardReceipt:
        """Count a reward, then let the optimizer look at it."""
        session = await self._store.session(session_id)
        if session.state is SessionState.CANCELLED:
            raise SessionEnded(
                f"session {session_id} is cancelled and takes no rewards; create another session"
            )
        config = self._knowledge.config(session)
        reward = self._reward_of(session, config, request)
        attached = await self._store.add_reward(reward, request_key=request_key)
        if request.stop:
            await self._store.set_state(
                session_id,
                SessionState.SUCCEEDED,
                at=self._clock(),
                stop_reason="stop was sent with a reward",
            )
        elif not attached.duplicate and not session.state.final:
            await self._promotion.consider(session_id)
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
        )

    async def close(self) -> None:
        """Wait until every call that has ended is recorded."""
        await self._recorder.close()

    async def _choose(self, session: Session, rollout_id: str, example_id: str | None) -> Choice:
        config = self._knowledge.config(session)
        if not session.state.final:
            session = await self._promotion.end_if_exhausted(session)
        if session.state.final:
            return _certain(session.champion_id)
        duel = await self._store.duel(session.session_id)
        running = duel if duel and duel.state is DuelState.RUNNING else None
        block = config.mipro.online_rollouts_per_candidate
        if session.serving_candidate_id and running is None and session.serving_rollouts % block:
            return _certain(session.serving_candidate_id)
        deviation = 0.0
        if running and example_id:
            seen = await self._store.example_rewards(session.session_id, example_id)
            deviation = expected_deviation(*seen)
        snapshot = await self._beliefs.recent(session)
        return choose(
            snapshot.plan,
            duel=running,
            expected_deviation=deviation,
            settings=config.mipro.selection,
            promotion=config.mipro.promotion,
            rng=generator(config, session, zlib.crc32(rollout_id.encode())),
        )

    async def _candidate_of(self, session: Session, candidate_id: str) -> Candidate:
        candidate = await self._store.candidate(candidate_id)
        if candidate.session_id != session.session_id:
            raise CandidateNotFound(
                f"session {session.session_id} has no candidate {candidate_id!r}"
            )
        return candidate

    def _reward_of(self, session: Session, config: MiproConfig, request: RewardRequest) -> Reward:
        told = RewardInfo.parse(request.reward_info)
        low, high = config.mipro.reward_range
        if not low <= told.score <= high:
            raise RewardInvalid(
                f"the score {told.score} is outside [{low}, {high}]; "
                "set prompt_learning.mipro.reward_range to the range of your rewards"
            )
        metadata = request.metadata or {}
        return Reward(
            reward_id=self._new_id("reward"),
            session_id=session.session_id,
            rollout_id=request.rollout_id or None,
            candidate_id=request.candidate_id or None,
            correlation_id=request.correlation_id or session.correlation_id,
            score=told.score,
            value=config.mipro.scaled(told.score),
            feedback=told.feedback,
            expected=_first_text(metadata, EXPECTED_KEYS),
            example_id=_first_text(metadata, EXAMPLE_KEYS),
            trace_ref=request.trace_ref,
            artifact=request.artifact,
            metadata=request.metadata,
            received_at=self._clock(),
        )


def _certain(candidate_id: str) -> Choice:
    """No chance in it: the session has ended, or the candidate's block of rollouts goes on."""
    return Choice(candidate_id, propensity=1.0, propensities={candidate_id: 1.0})


def _with_policy_defaults(body: ChatBody, config: MiproConfig) -> ChatBody:
    """The body with the session's policy settings where the caller left them open."""
    policy = config.policy
    defaults: dict[str, Any] = {}
    if "model" not in body and policy.model is not None:
        defaults["model"] = policy.model
    if "temperature" not in body and policy.temperature is not None:
        defaults["temperature"] = policy.temperature
    if not {"max_tokens", "max_completion_tokens"} & body.keys() and policy.max_completion_tokens:
        defaults["max_completion_tokens"] = policy.max_completion_tokens
    return body | defaults


def _first_text(metadata: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of these entries that is text or a whole number, as text."""
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None
