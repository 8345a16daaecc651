"""One proxied call, from its admission to what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import CandidateNotFound, MiproError
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.chat import ChatBody, ChatMessage
from prefect_mipro.models.sessions import Session
from prefect_mipro.optimizer.prompts import Applied, Mismatch, Recognised, apply, recognise
from prefect_mipro.server.services.assignment import Assigned, Assignments
from prefect_mipro.server.services.calls import Call, Served, prompt_word
from prefect_mipro.server.services.identity import NewId
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.services.live import NOTHING, Live, LiveSession
from prefect_mipro.server.services.recording import Recorder
from prefect_mipro.server.services.reservations import reserve, text_or_none
from prefect_mipro.server.upstream.interface import Reply
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.server.upstream.stream_usage import UsageRequests, leaves_usage_open


class Serving:
    """The calls of all sessions, and the candidates that they get."""

    def __init__(
        self,
        upstreams: Upstreams,
        knowledge: Knowledge,
        live: Live,
        assignments: Assignments,
        journal: Journal,
        recorder: Recorder,
        *,
        new_id: NewId,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.upstreams = upstreams
        self.live = live
        self.assignments = assignments
        self.journal = journal
        self.recorder = recorder
        self.new_id = new_id
        self.timer = timer
        self.usage_requests = UsageRequests()
        self._knowledge = knowledge

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
        )
        return await assigned.settled()

    async def candidate_of(self, session_id: str, candidate_id: str) -> Candidate:
        """The session's candidate of that id. Raises CandidateNotFound."""
        with suppress(CandidateNotFound):
            candidate = await self._knowledge.candidate(candidate_id)
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
        """The same for a session at hand."""
        instruction, demonstrations = await self._knowledge.prompt_of(candidate)
        return apply(
            messages,
            prompt=live.config.initial_prompt,
            instruction=instruction.text,
            demonstrations=demonstrations.demonstrations,
            example_id=example_id,
            recognised=recognised,
        )


# One for each call, and a class rather than a generator: entering and leaving those costs more.
class _Service:
    """One call on its way: entered, its answer is under way; left, it is on record."""

    def __init__(self, serving: Serving, session: Session, call: Call) -> None:
        self._serving = serving
        self._session = session
        self._call = call
        self._reserved = NOTHING
        self._rollout_id = call.rollout_id or serving.new_id("rollout")
        self._candidate: Candidate | None = None
        self._served: Served | None = None
        self._started: float | None = None

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
        except BaseException as error:
            self._leave(error)
            raise
        assert self._served is not None
        return self._served

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._chat.__aexit__(kind, error, traceback)
        finally:
            self._leave(error)

    async def _assign(self) -> Assigned:
        call, serving, live = self._call, self._serving, self._live
        if call.candidate_id is not None:
            candidate = await serving.candidate_of(live.session_id, call.candidate_id)
            return Assigned(candidate)
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
        self._candidate = candidate
        call, live = self._call, self._live
        call.metered.chosen(live.session_id, self._rollout_id, candidate.candidate_id)
        applied = self._applied = await self._serving.applied(
            live, candidate, call.body["messages"], call.example_id, self._recognised
        )
        body = _with_policy_defaults(call.body, live.config)
        body["messages"] = list(applied.messages)
        self._asked_model = text_or_none(body.get("model"))
        self._started = self._serving.timer()
        call.metered.forwarded(live.config.policy.provider, body.get("model"))
        chat = self._begin_chat(body)
        try:
            reply = await chat.__aenter__()
        except MiproError:
            # Only of a pinned rollout anything can be kept.
            await self._assigned.settled()
            raise
        try:
            settled = await self._assigned.settled()
        except BaseException as error:
            await chat.__aexit__(type(error), error, error.__traceback__)
            raise
        if settled.candidate_id != candidate.candidate_id:
            await chat.__aexit__(None, None, None)
            return settled
        self._chat = chat
        self._served = Served(
            candidate.candidate_id,
            self._rollout_id,
            reply,
            prompt_applied=applied.mismatch is None,
            started=self._started,
            stream=body.get("stream") is True,
            timer=self._serving.timer,
        )
        return None

    def _begin_chat(self, body: ChatBody) -> AbstractAsyncContextManager[Reply]:
        policy, key = self._live.config.policy, self._call.provider_key
        upstream = self._serving.upstreams.named(
            policy.provider, inference_url=policy.inference_url
        )
        if leaves_usage_open(body):
            return self._serving.usage_requests.chat(upstream, body, api_key=key)
        return upstream.chat(body, api_key=key)

    def _leave(self, error: BaseException | None) -> None:
        """Keep what is to be kept of it, and make room for another."""
        candidate = self._candidate
        try:
            failure = error if isinstance(error, MiproError) else None
            if candidate is None:
                return
            if self._call.learns and self._assigned.is_pinned_to(candidate):
                self._record(candidate, failure)
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

    def _record(self, candidate: Candidate, failure: MiproError | None) -> None:
        if self._started is None:
            return
        trace = self._serving.recorder.record(
            self._live,
            candidate,
            self._rollout_id,
            self._applied,
            self._served,
            failure,
            latency_seconds=self._serving.timer() - self._started,
            asked_model=self._asked_model,
        )
        self._call.metered.read(
            trace.usage, model=trace.model, cost_usd=trace.cost_usd, broken=trace.error != ""
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
