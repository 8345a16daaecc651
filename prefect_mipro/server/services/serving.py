"""Serving: one proxied call, from admission to recording."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import TracebackType

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import CandidateNotFound, Conflict, MiproError
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.chat import ChatBody, ChatMessage
from prefect_mipro.models.rollouts import CallFailure, FailureKind
from prefect_mipro.models.sessions import Session
from prefect_mipro.optimizer.prompts import (
    Applied,
    Mismatch,
    Recognised,
    apply,
    characters,
    recognise,
)
from prefect_mipro.server.ids import NewId
from prefect_mipro.server.services.assignment import Assigned, Assignments
from prefect_mipro.server.services.calls import Call, Served, prompt_word, reserve, text_or_none
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.recording import Recorder, call_failure
from prefect_mipro.server.services.rewards import PromotionChecks
from prefect_mipro.server.services.session_cache import (
    NOTHING,
    LiveSession,
    PromptCache,
    SessionCache,
)
from prefect_mipro.server.upstream.interface import Reply
from prefect_mipro.server.upstream.prompt_failures import prompt_failure
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.server.upstream.stream_usage import UsageRequests, leaves_usage_open

log = logging.getLogger(__name__)

# What another prompt may still be answered for: the caller has seen nothing of it.
REFUSALS = frozenset({FailureKind.REFUSED, FailureKind.FILTERED})
# A caller that allows fewer tokens wants a label, and cuts off the rest on purpose.
LABEL_TOKENS = 32


class Serving:
    """Serving of the calls of all sessions."""

    def __init__(
        self,
        upstreams: Upstreams,
        prompts: PromptCache,
        live: SessionCache,
        assignments: Assignments,
        journal: Journal,
        recorder: Recorder,
        checks: PromotionChecks,
        *,
        new_id: NewId,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.upstreams = upstreams
        self.live = live
        self.assignments = assignments
        self.journal = journal
        self.recorder = recorder
        self.checks = checks
        self.new_id = new_id
        self.timer = timer
        self.usage_requests = UsageRequests()
        self._prompts = prompts

    def serve(self, session: Session, call: Call) -> AbstractAsyncContextManager[Served]:
        """Answer a call with its rollout's candidate. Leaving early cancels the upstream call.

        Entering raises Overloaded, before anything is chosen, while too many calls are under way or
        what calls leave behind cannot be written. Errors after the choice name the candidate and
        the rollout in their `detail`.
        """
        return _Service(self, session, call)

    async def assign(
        self,
        session: Session,
        *,
        rollout_id: str,
        correlation_id: str | None = None,
        example_id: str | None = None,
        applied: bool | None = None,
    ) -> Candidate:
        """The rollout's candidate: the pinned one, else one that is chosen and pinned now."""
        live = await self.live.of(session.session_id)
        assigned = await self.assignments.of(
            live,
            rollout_id,
            correlation_id=correlation_id,
            example_id=example_id,
            applied=applied,
            trust_memory=False,
        )
        return await assigned.settled()

    async def candidate_of(self, session_id: str, candidate_id: str) -> Candidate:
        """The session's candidate of that id. Raises CandidateNotFound."""
        with suppress(CandidateNotFound):
            candidate = await self._prompts.candidate(candidate_id)
            if candidate.session_id == session_id:
                return candidate
        # One of another session is as unknown as one of none.
        raise CandidateNotFound(f"session {session_id} has no candidate {candidate_id!r}")

    async def prompt_of(
        self,
        session: Session,
        candidate: Candidate,
        messages: Sequence[ChatMessage],
        *,
        example_id: str | None = None,
        recognised: Recognised | Mismatch | None = None,
    ) -> Applied:
        """The caller's messages with the candidate's prompt in them."""
        live = await self.live.of(session.session_id)
        return await self.applied(live, candidate, messages, example_id, recognised)

    async def applied(
        self,
        live: LiveSession,
        candidate: Candidate,
        messages: Sequence[ChatMessage],
        example_id: str | None,
        recognised: Recognised | Mismatch | None,
    ) -> Applied:
        """The caller's messages with the candidate's prompt, for a session in memory."""
        instruction, demonstrations = await self._prompts.prompt_of(candidate)
        return apply(
            messages,
            prompt=live.config.initial_prompt,
            instruction=instruction.text,
            demonstrations=demonstrations.demonstrations,
            example_id=example_id,
            recognised=recognised,
        )


@dataclass(slots=True)
class _Asked:
    """A model that is asked with a candidate's prompt; `served` once its answer is under way."""

    candidate: Candidate
    applied: Applied
    model: str | None
    stream: bool
    longest_answer_tokens: object
    chat: AbstractAsyncContextManager[Reply]
    started: float
    served: Served | None = None


# One for each call, and a class rather than a generator: entering and leaving those costs more.
class _Service:
    """One call as a context: inside, its answer is under way; afterwards, it is recorded."""

    def __init__(self, serving: Serving, session: Session, call: Call) -> None:
        self._serving = serving
        self._session = session
        self._call = call
        self._reserved = NOTHING
        self._rollout_id = call.rollout_id or serving.new_id("rollout")
        self._candidate: Candidate | None = None
        self._asked: _Asked | None = None

    async def __aenter__(self) -> Served:
        self._serving.journal.begin_call()
        try:
            live = self._live = await self._serving.live.of(self._session.session_id)
            if self._call.learns:
                self._reserved = reserve(live, self._call.body)
            self._recognised = recognise(self._call.body["messages"], live.config.initial_prompt)
            self._assigned = await self._assign()
            candidate: Candidate | None = self._assigned.candidate
            while candidate is not None:
                candidate = await self._ask(candidate)
            assert self._asked is not None
            await self._fall_back(self._asked)
        except BaseException as error:
            self._leave(error)
            raise
        assert self._asked.served is not None
        return self._asked.served

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._asked is not None
        try:
            await self._asked.chat.__aexit__(kind, error, traceback)
        finally:
            self._leave(error)

    async def _assign(self) -> Assigned:
        call, serving, live = self._call, self._serving, self._live
        if call.candidate_id is not None:
            candidate = await serving.candidate_of(live.session_id, call.candidate_id)
            if candidate.candidate_id in live.withdrawn_ids:
                raise Conflict(
                    f"candidate {candidate.candidate_id!r} was retired at a request and is not "
                    "served any more; ask for another one, or promote it to bring it back"
                )
            return Assigned(candidate, {})
        return await serving.assignments.of(
            live,
            self._rollout_id,
            correlation_id=call.correlation_id,
            example_id=call.example_id,
            applied=isinstance(self._recognised, Recognised),
            own=self._reserved,
        )

    async def _ask(self, candidate: Candidate) -> Candidate | None:
        """Ask the model with that candidate; another one when the rollout is pinned to that."""
        self._choose(candidate)
        self._asked = None
        asked = self._asked = await self._prepare(candidate)
        self._call.metered.forwarded(self._live.config.policy.provider, asked.model)
        try:
            reply = await asked.chat.__aenter__()
        except MiproError:
            # Only of a pinned rollout anything can be kept.
            await self._assigned.settled()
            raise
        try:
            settled = await self._assigned.settled()
        except BaseException as error:
            await asked.chat.__aexit__(type(error), error, error.__traceback__)
            raise
        if settled.candidate_id != candidate.candidate_id:
            await asked.chat.__aexit__(None, None, None)
            return settled
        asked.served = self._served(asked, reply)
        return None

    async def _fall_back(self, refused: _Asked) -> None:
        """Ask once more with the champion's prompt where the model refuses the candidate's.

        The rollout is the champion's then. Where that gets no better answer, the refusal stays.
        """
        try:
            again = await self._answered_otherwise(refused)
        except BaseException as error:
            await refused.chat.__aexit__(type(error), error, error.__traceback__)
            raise
        if again is not None:
            await self._go_on_with(again, refused)

    async def _answered_otherwise(self, refused: _Asked) -> _Asked | None:
        """The call with another prompt, its answer under way; `None` where the first one stays."""
        served = refused.served
        assert served is not None
        other_id = self._fallback_id(refused.candidate)
        if other_id is None or await served.is_stream():
            return None
        await served.read()
        failure = self._failure_of(refused)
        if failure is None or failure.kind not in REFUSALS:
            return None
        other = await self._serving.candidate_of(self._live.session_id, other_id)
        again = await self._prepare(other)
        if again.applied.messages == refused.applied.messages:
            return None
        try:
            reply = await again.chat.__aenter__()
        except MiproError:
            return None
        again.served = self._served(again, reply)
        again.served.failed_candidate_id = refused.candidate.candidate_id
        try:
            if await self._is_better(again):
                await self._serving.assignments.fall_back(
                    self._live, self._rollout_id, failure, other
                )
                return again
        except MiproError as error:
            log.warning("fallback_failed", extra={"reason": error.message})
        except BaseException as error:
            await again.chat.__aexit__(type(error), error, error.__traceback__)
            raise
        await again.chat.__aexit__(None, None, None)
        return None

    def _fallback_id(self, candidate: Candidate) -> str | None:
        """The champion, or for itself the baseline; `None` where nothing is to be asked again."""
        live = self._live
        if not (self._call.learns and live.config.mipro.fallback_to_champion):
            return None
        others = (live.champion_id, live.session.baseline_id)
        return next((other for other in others if other != candidate.candidate_id), None)

    async def _is_better(self, again: _Asked) -> bool:
        """Whether the second answer should be passed on."""
        served = again.served
        assert served is not None
        if served.is_refusal:
            return False
        if await served.is_stream():
            await served.require_events()
        else:
            await served.read()
        return self._failure_of(again) is None

    async def _go_on_with(self, again: _Asked, refused: _Asked) -> None:
        """Make the second answer that of the call, and keep the first one on record."""
        self._record(refused, None)
        self._asked, self._assigned = again, Assigned(again.candidate, {})
        self._choose(again.candidate)
        try:
            await refused.chat.__aexit__(None, None, None)
        except BaseException as error:
            await again.chat.__aexit__(type(error), error, error.__traceback__)
            raise

    def _choose(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._call.metered.chosen(self._live.session_id, self._rollout_id, candidate.candidate_id)

    async def _prepare(self, candidate: Candidate) -> _Asked:
        """The call as it goes to the model."""
        call, live = self._call, self._live
        applied = await self._serving.applied(
            live, candidate, call.body["messages"], call.example_id, self._recognised
        )
        body = _with_policy_defaults(call.body, live.config)
        body["messages"] = list(applied.messages)
        return _Asked(
            candidate,
            applied,
            text_or_none(body.get("model")),
            body.get("stream") is True,
            body.get("max_completion_tokens") or body.get("max_tokens"),
            self._begin_chat(body),
            self._serving.timer(),
        )

    def _begin_chat(self, body: ChatBody) -> AbstractAsyncContextManager[Reply]:
        policy, key = self._live.config.policy, self._call.provider_key
        upstream = self._serving.upstreams.named(
            policy.provider, inference_url=policy.inference_url
        )
        if leaves_usage_open(body):
            return self._serving.usage_requests.chat(upstream, body, api_key=key)
        return upstream.chat(body, api_key=key)

    def _served(self, asked: _Asked, reply: Reply) -> Served:
        return Served(
            asked.candidate.candidate_id,
            self._rollout_id,
            reply,
            started=asked.started,
            prompt_applied=asked.applied.mismatch is None,
            stream=asked.stream,
            timer=self._serving.timer,
        )

    def _leave(self, error: BaseException | None) -> None:
        """Record the call, and make room for another."""
        candidate, asked = self._candidate, self._asked
        try:
            failure = error if isinstance(error, MiproError) else None
            if candidate is None:
                return
            if asked and self._call.learns and self._assigned.is_pinned_to(asked.candidate):
                self._record(asked, failure)
            if failure is not None:
                failure.detail = {
                    "candidate_id": candidate.candidate_id,
                    "rollout_id": self._rollout_id,
                    "prompt": prompt_word(applied=isinstance(self._recognised, Recognised)),
                    "reason": failure.detail,
                }
        finally:
            if self._reserved is not NOTHING:
                self._live.reserved -= self._reserved
            self._serving.journal.end_call()

    def _record(self, asked: _Asked, error: MiproError | None) -> None:
        serving = self._serving
        failure = self._failure_of(asked)
        trace = serving.recorder.record(
            self._live,
            asked.candidate,
            self._rollout_id,
            asked.applied,
            asked.served,
            error,
            latency_seconds=serving.timer() - asked.started,
            asked_model=asked.model,
            failure=failure,
            if_removed=self._assigned.if_removed,
        )
        self._call.metered.read(
            trace.usage, model=trace.model, cost_usd=trace.cost_usd, broken=trace.error != ""
        )
        if failure is not None:
            serving.checks.begin(self._live.session_id)

    def _failure_of(self, asked: _Asked) -> CallFailure | None:
        """How the call failed because of the candidate's prompt, as far as its answer tells."""
        if asked.served is None or asked.applied.mismatch:
            return None
        told = prompt_failure(asked.served.status, asked.served.completion)
        if told is None:
            return None
        limit = asked.longest_answer_tokens
        if told.kind is FailureKind.CUT and isinstance(limit, int) and limit < LABEL_TOKENS:
            return None
        sent = characters(asked.applied.messages)
        return call_failure(
            asked.candidate,
            told,
            shares=self._assigned.shares,
            sent=sent,
            added=sent - characters(self._call.body["messages"]),
        )


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
