"""Rollouts: which candidate serves one, the call itself, and the reward that comes back."""

from __future__ import annotations

import asyncio
import time
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
from prefect_mipro.models.candidates import Candidate
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
from prefect_mipro.server.services.asking import UsageAsked, leaves_usage_open
from prefect_mipro.server.services.beliefs import Beliefs, Chance
from prefect_mipro.server.services.calls import Call, Served
from prefect_mipro.server.services.identity import Clock, NewId
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.services.live import NOTHING, Live, LiveSession, Reserved
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.recording import Recorder
from prefect_mipro.server.services.reservations import reserve, text_or_none
from prefect_mipro.server.store.interface import Store
from prefect_mipro.server.telemetry.watch import Telemetry
from prefect_mipro.server.upstream.interface import Upstream
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
        live: Live,
        beliefs: Beliefs,
        promotion: Promotion,
        proposals: Proposals,
        journal: Journal,
        recorder: Recorder,
        *,
        telemetry: Telemetry,
        clock: Clock,
        new_id: NewId,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._knowledge = knowledge
        self._live = live
        self._beliefs = beliefs
        self._promotion = promotion
        self._proposals = proposals
        self._clock = clock
        self._new_id = new_id
        self._timer = timer
        self._journal = journal
        self._recorder = recorder
        self._usage_asked = UsageAsked()
        self._telemetry = telemetry

    @asynccontextmanager
    async def serve(self, session: Session, call: Call) -> AsyncIterator[Served]:
        """Answer a call with its rollout's candidate. Leaving early cancels the upstream call.

        Raises Overloaded, before anything is chosen, while too many calls are under way or what
        calls leave behind cannot be written. Errors after the choice name the candidate and the
        rollout in their `detail`.
        """
        with self._journal.admitted():
            live = await self._live.of(session.session_id)
            learns = call.candidate_id is None
            own = reserve(live, call.body) if learns else NOTHING
            rollout_id = call.rollout_id or self._new_id("rollout")
            candidate: Candidate | None = None
            served: Served | None = None
            failure: MiproError | None = None
            try:
                candidate = await self._candidate(live, rollout_id, call, own)
                call.metered.chosen(live.session_id, rollout_id, candidate.candidate_id)
                applied = await self._applied(
                    live, candidate, call.body["messages"], call.example_id
                )
                body = _with_policy_defaults(call.body, live.config)
                body["messages"] = list(applied.messages)
                started = self._timer()
                call.metered.forwarded(live.config.policy.provider, body.get("model"))
                try:
                    upstream, key = self._upstream_of(live), call.provider_key
                    asked = leaves_usage_open(body)
                    async with (
                        self._usage_asked.chat(upstream, body, api_key=key)
                        if asked
                        else upstream.chat(body, api_key=key)
                    ) as reply:
                        served = Served(
                            candidate.candidate_id,
                            rollout_id,
                            reply,
                            started=started,
                            usage_hidden=asked,
                            timer=self._timer,
                        )
                        yield served
                except MiproError as error:
                    failure = error
                    raise
                finally:
                    if learns:
                        trace = self._recorder.record(
                            live,
                            candidate,
                            rollout_id,
                            applied,
                            served,
                            failure,
                            latency_seconds=self._timer() - started,
                            asked_model=text_or_none(body.get("model")),
                        )
                        call.metered.read(
                            trace.usage,
                            model=trace.model,
                            cost_usd=trace.cost_usd,
                            broken=trace.error != "",
                        )
            except MiproError as error:
                if candidate is not None:
                    error.detail = {
                        "candidate_id": candidate.candidate_id,
                        "rollout_id": rollout_id,
                        "reason": error.detail,
                    }
                raise
            finally:
                live.reserved -= own

    async def assign(
        self,
        session: Session,
        *,
        rollout_id: str,
        correlation_id: str | None = None,
        example_id: str | None = None,
    ) -> Candidate:
        """The rollout's candidate: the pinned one, else one that is chosen and pinned now."""
        live = await self._live.of(session.session_id)
        return await self._assigned(live, rollout_id, correlation_id, example_id, NOTHING)

    async def candidate_of(self, session_id: str, candidate_id: str) -> Candidate:
        """The session's candidate of that id. Raises CandidateNotFound."""
        candidate = await self._knowledge.candidate(candidate_id)
        if candidate.session_id != session_id:
            raise CandidateNotFound(f"session {session_id} has no candidate {candidate_id!r}")
        return candidate

    async def prompt_of(
        self,
        session: Session,
        candidate: Candidate,
        messages: Sequence[ChatMessage],
        *,
        example_id: str | None = None,
    ) -> Applied:
        """The caller's messages with the candidate's prompt in them."""
        live = await self._live.of(session.session_id)
        return await self._applied(live, candidate, messages, example_id)

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
        reward = self._reward_of(session, live.config, request)
        attached = await self._store.add_reward(reward, request_key=request_key)
        if request.stop:
            await self._store.set_state(
                session_id,
                SessionState.SUCCEEDED,
                at=self._clock(),
                stop_reason="stop was sent with a reward",
            )
        elif not attached.duplicate and not session.state.final:
            await self._promotion.consider(await self._live.of(session_id))
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
        await self._journal.close()

    async def _candidate(
        self, live: LiveSession, rollout_id: str, call: Call, own: Reserved
    ) -> Candidate:
        if call.candidate_id is not None:
            return await self.candidate_of(live.session_id, call.candidate_id)
        return await self._assigned(live, rollout_id, call.correlation_id, call.example_id, own)

    def _upstream_of(self, live: LiveSession) -> Upstream:
        policy = live.config.policy
        return self._upstreams.named(policy.provider, inference_url=policy.inference_url)

    async def _assigned(
        self,
        live: LiveSession,
        rollout_id: str,
        correlation_id: str | None,
        example_id: str | None,
        own: Reserved,
    ) -> Candidate:
        session_id = live.session_id
        candidate_id = self._live.pinned(session_id, rollout_id)
        while candidate_id is None:
            # Of the calls of one rollout that come at once, one chooses.
            chosen = live.choosing.get(rollout_id)
            if chosen is None:
                candidate_id = await self._pin(live, rollout_id, correlation_id, example_id, own)
                self._live.remember_pin(session_id, rollout_id, candidate_id)
            else:
                await chosen.wait()
                candidate_id = self._live.pinned(session_id, rollout_id)
        return await self._knowledge.candidate(candidate_id)

    async def _pin(
        self,
        live: LiveSession,
        rollout_id: str,
        correlation_id: str | None,
        example_id: str | None,
        own: Reserved,
    ) -> str:
        """Choose a candidate and pin it, unless the rollout was pinned before. Returns its own."""
        chosen = live.choosing[rollout_id] = asyncio.Event()
        try:
            choice = await self._choose(live, rollout_id, example_id, own)
            rollout = Rollout(
                session_id=live.session_id,
                rollout_id=rollout_id,
                candidate_id=choice.candidate_id,
                correlation_id=correlation_id or live.session.correlation_id,
                example_id=example_id,
                propensity=choice.propensity,
                duel_number=choice.duel_number,
                predicted_reward=choice.predicted_reward,
                pinned_at=self._clock(),
            )
            live.serve(choice.candidate_id)
            pinned = await self._journal.pin(rollout)
            live.rollouts = max(live.rollouts, pinned.position or 0)
            return pinned.candidate_id
        finally:
            del live.choosing[rollout_id]
            chosen.set()

    async def _choose(
        self, live: LiveSession, rollout_id: str, example_id: str | None, own: Reserved
    ) -> Choice:
        session, config = live.session, live.config
        if session.state.final or not await self._promotion.has_room(live, own):
            return _certain(session.champion_id)
        duel = live.running_duel
        block = config.mipro.online_rollouts_per_candidate
        if live.serving_candidate_id and duel is None and live.serving_rollouts % block:
            return _certain(live.serving_candidate_id)
        deviation = 0.0
        if duel and example_id:
            seen = await self._store.example_rewards(live.session_id, example_id)
            deviation = expected_deviation(*seen)
        snapshot = await self._beliefs.recent(live)
        return choose(
            snapshot.plan,
            duel=duel,
            expected_deviation=deviation,
            settings=config.mipro.selection,
            promotion=config.mipro.promotion,
            rng=Chance(config, live.session_id, rollout_id),
        )

    async def _applied(
        self,
        live: LiveSession,
        candidate: Candidate,
        messages: Sequence[ChatMessage],
        example_id: str | None,
    ) -> Applied:
        instruction, demonstrations = await self._knowledge.prompt_of(candidate)
        return apply(
            messages,
            prompt=live.config.initial_prompt,
            instruction=instruction.text,
            demonstrations=demonstrations.demonstrations,
            example_id=example_id,
        )

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
    """A copy of the body with the session's policy settings where the caller left them open."""
    policy = config.policy
    filled = dict(body)
    if policy.model is not None:
        filled.setdefault("model", policy.model)
    if policy.temperature is not None:
        filled.setdefault("temperature", policy.temperature)
    if not {"max_tokens", "max_completion_tokens"} & body.keys() and policy.max_completion_tokens:
        filled["max_completion_tokens"] = policy.max_completion_tokens
    return filled


def _first_text(metadata: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of these entries that is text or a whole number, as text."""
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None
