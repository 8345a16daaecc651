"""Leases: a rollout's candidate for programs that call their model themselves, and their traces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect_mipro.errors import InputInvalid, UpstreamFailed
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.chat import ChatMessage, InitialPrompt, Usage
from prefect_mipro.models.leases import (
    Lease,
    LeasedDemonstrations,
    LeasedInstruction,
    LeasedLevers,
    LeasedPolicy,
    LeaseRequest,
    TraceReceipt,
    TraceRequest,
)
from prefect_mipro.models.levers import LeverName, LeverVersion, lever_id
from prefect_mipro.models.placeholders import escaped, fill, placeholders_of, texts_of
from prefect_mipro.models.rollouts import CallFailure, Rollout, Trace
from prefect_mipro.models.sessions import Session
from prefect_mipro.optimizer.prompts import (
    Applied,
    Mismatch,
    answer_text,
    apply,
    characters,
    recognise,
    user_text,
)
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.calls import likely_usage
from prefect_mipro.server.services.recording import Recorder, call_failure
from prefect_mipro.server.services.rewards import Rollouts
from prefect_mipro.server.services.serving import Serving
from prefect_mipro.server.services.session_cache import LiveSession, PromptCache
from prefect_mipro.server.services.sessions import Sessions
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.upstream.completions import Completion
from prefect_mipro.server.upstream.prompt_failures import prompt_failure

LONGEST_SAYING = 1_000


@dataclass(frozen=True)
class _Leased:
    """A candidate with the values of its levers, for a rollout of this example."""

    candidate: Candidate
    instruction: LeverVersion
    demonstrations: LeverVersion
    example_id: str | None

    @property
    def levers(self) -> LeasedLevers:
        """The lever values that may be shown: nothing that gives the example's answer away."""
        session_id = self.candidate.session_id
        return LeasedLevers(
            instruction=LeasedInstruction(
                lever_id=lever_id(session_id, LeverName.INSTRUCTION),
                version=self.instruction.version,
                text=self.instruction.text,
            ),
            demonstrations=LeasedDemonstrations(
                lever_id=lever_id(session_id, LeverName.DEMONSTRATIONS),
                version=self.demonstrations.version,
                demonstrations=tuple(
                    demonstration
                    for demonstration in self.demonstrations.demonstrations
                    if self.example_id is None or demonstration.example_id != self.example_id
                ),
            ),
        )


class Leases:
    """The leases of all sessions, and the traces posted for them."""

    def __init__(
        self,
        store: Store,
        prompts: PromptCache,
        sessions: Sessions,
        serving: Serving,
        rollouts: Rollouts,
        recorder: Recorder,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._sessions = sessions
        self._serving = serving
        self._rollouts = rollouts
        self._recorder = recorder
        self._clock = clock
        self._new_id = new_id

    async def lease(
        self,
        session_id: str,
        *,
        rollout_id: str,
        example_id: str | None = None,
        correlation_id: str | None = None,
        candidate_id: str | None = None,
        render: bool = False,
    ) -> Lease:
        """The rollout's candidate, chosen and pinned as by a proxied call.

        With `render` the prompt is in it, its placeholders left as they are. With `candidate_id` it
        is that candidate, and nothing is pinned.
        """
        asked = LeaseRequest(
            rollout_id=rollout_id,
            example_id=example_id,
            correlation_id=correlation_id,
            candidate_id=candidate_id,
        )
        session = await self._store.session(session_id)
        # Whether the program uses it, only the program knows.
        leased = await self._leased(session, asked, applied=None)
        prompt = self._prompts.config(session).initial_prompt
        applied = _unfilled(prompt, leased) if render else None
        return await self._lease(session, asked, leased, applied)

    async def rendered(self, session_id: str, asked: LeaseRequest) -> Lease:
        """A lease with the whole prompt in it, made of the caller's inputs or messages.

        Raises InputInvalid, and pins nothing, where there is no prompt to be made of them.
        """
        session = await self._store.session(session_id)
        prompt = self._prompts.config(session).initial_prompt
        if (asked.inputs is None) == (asked.messages is None):
            raise InputInvalid(
                "send either inputs, the texts of the prompt's placeholders, or messages, your "
                "program's own; GET .../prompt?render=true shows the prompt with its placeholders"
            )
        if asked.messages is not None:
            recognised = recognise(asked.messages, prompt)
            leased = await self._leased(
                session, asked, applied=not isinstance(recognised, Mismatch)
            )
            applied = await self._serving.prompt_of(
                session,
                leased.candidate,
                asked.messages,
                example_id=asked.example_id,
                recognised=recognised,
            )
        else:
            texts = _texts(prompt, asked.inputs or {})
            leased = await self._leased(session, asked, applied=True)
            applied = _rendered(prompt, texts, leased)
        return await self._lease(session, asked, leased, applied)

    async def post_trace(
        self,
        session_id: str,
        rollout_id: str,
        posted: TraceRequest,
        *,
        request_key: str | None = None,
    ) -> TraceReceipt:
        """Count a call that the rollout made itself, as if it had come through the proxy.

        Raises RolloutNotFound for a rollout that was neither leased nor served, and Conflict where
        its trace id stands for another trace already.
        """
        rollout = await self._rollouts.find(session_id, rollout_id)
        session = await self._store.session(session_id)
        candidate = await self._store.candidate(rollout.candidate_id)
        response = _response(posted)
        usage = _told_usage(posted, response)
        # As of a proxied call whose answer does not tell it.
        estimated = usage == Usage() and response is not None and posted.usage is None
        if estimated:
            usage = likely_usage(posted.messages, answer_text(response))
        trace = self._trace(session, rollout, posted, response, usage, request_key)
        trace = trace.model_copy(update={"estimated": estimated})
        live = await self._serving.live.of(session_id)
        failure = await self._failure_of(live, trace, posted, candidate)
        duplicate = await self._recorder.post(trace, live, failure=failure)
        if failure is not None:
            self._serving.checks.begin(session_id)
        return TraceReceipt(
            status="accepted",
            session_id=session_id,
            rollout_id=rollout_id,
            candidate_id=rollout.candidate_id,
            trace_id=trace.trace_id,
            duplicate=duplicate,
        )

    async def _failure_of(
        self, live: LiveSession, trace: Trace, posted: TraceRequest, candidate: Candidate
    ) -> CallFailure | None:
        """How the call failed because of the candidate's prompt, as far as the program tells."""
        if posted.unapplied_reason:
            return None
        answer = {"error": {"message": posted.error}} if posted.error else trace.response
        told = prompt_failure(200, Completion(answer))
        if told is None:
            return None
        _, shown = await self._prompts.prompt_of(candidate)
        return call_failure(
            candidate,
            told,
            shares=live.shares,
            sent=characters(trace.messages),
            added=sum(len(d.input) + len(d.output) for d in shown.demonstrations),
        )

    async def _leased(
        self, session: Session, asked: LeaseRequest, *, applied: bool | None
    ) -> _Leased:
        if asked.candidate_id is None:
            candidate = await self._serving.assign(
                session,
                rollout_id=asked.rollout_id,
                correlation_id=asked.correlation_id,
                example_id=asked.example_id,
                applied=applied,
            )
            await self._note_applied(session.session_id, asked.rollout_id, applied)
        else:
            candidate = await self._serving.candidate_of(session.session_id, asked.candidate_id)
        instruction, demonstrations = await self._prompts.prompt_of(candidate)
        return _Leased(candidate, instruction, demonstrations, asked.example_id)

    async def _note_applied(self, session_id: str, rollout_id: str, applied: bool | None) -> None:
        """Store whether the prompt was used, where the rollout was pinned before."""
        if applied is None:
            return
        rollout = await self._rollouts.find(session_id, rollout_id)
        if not rollout.applied and rollout.applied is not applied:
            await self._store.note_applied(session_id, rollout_id, applied=applied)

    async def _lease(
        self, session: Session, asked: LeaseRequest, leased: _Leased, applied: Applied | None
    ) -> Lease:
        urls = await self._sessions.urls(session.session_id)
        config = self._prompts.config(session)
        prompt = config.initial_prompt
        return Lease(
            **dict(urls),
            session_id=session.session_id,
            rollout_id=asked.rollout_id,
            candidate_id=leased.candidate.candidate_id,
            number=leased.candidate.number,
            levers=leased.levers,
            lever_versions=leased.candidate.lever_versions,
            placeholders=placeholders_of(prompt) if prompt else (),
            policy=LeasedPolicy(
                model=config.policy.model,
                temperature=config.policy.temperature,
                max_completion_tokens=config.policy.max_completion_tokens,
            ),
            messages=applied.messages if applied else (),
            unapplied_reason=applied.reason if applied else "",
        )

    def _trace(
        self,
        session: Session,
        rollout: Rollout,
        posted: TraceRequest,
        response: JsonObject | None,
        usage: Usage,
        request_key: str | None,
    ) -> Trace:
        named = (response or {}).get("model")
        model = posted.model or (named if isinstance(named, str) else None)
        return Trace(
            trace_id=posted.trace_id or self._trace_id(session.session_id, request_key),
            session_id=session.session_id,
            rollout_id=rollout.rollout_id,
            candidate_id=rollout.candidate_id,
            messages=posted.messages,
            response=response,
            input=user_text(posted.messages),
            output=answer_text(response),
            unapplied_reason=_said(posted.unapplied_reason),
            status=UpstreamFailed.default_status if posted.error else 200,
            error=_said(posted.error or ""),
            latency_seconds=posted.latency_seconds,
            first_byte_seconds=posted.first_byte_seconds,
            usage=usage,
            cost_usd=self._prompts.config(session).call_cost_usd(model, usage),
            model=model,
            created_at=self._clock(),
        )

    def _trace_id(self, session_id: str, request_key: str | None) -> str:
        """A trace's id, the same for each repeat of a request."""
        if request_key is None:
            return self._new_id("trace")
        digest = hashlib.sha256(f"{session_id}\n{request_key}".encode()).hexdigest()
        return f"trace_{digest[:32]}"


def _texts(prompt: InitialPrompt | None, inputs: Mapping[str, Any]) -> dict[str, str]:
    """The text of each placeholder; empty where an optional one has none."""
    if prompt is None:
        raise InputInvalid(
            "the session's config has no initial_prompt, so there are no placeholders to fill; "
            "send your program's messages instead of inputs"
        )
    return texts_of(placeholders_of(prompt), inputs, name="the inputs")


def _rendered(prompt: InitialPrompt | None, texts: Mapping[str, str], leased: _Leased) -> Applied:
    """The candidate's prompt, filled with the texts."""
    return _made(prompt, leased, partial(fill, texts=texts))


def _unfilled(prompt: InitialPrompt | None, leased: _Leased) -> Applied:
    """The candidate's prompt as patterns, to be filled later."""
    # Without a prompt an instruction is no pattern.
    return _made(prompt, leased, str if prompt else escaped)


def _made(prompt: InitialPrompt | None, leased: _Leased, text_of: Callable[[str], str]) -> Applied:
    own = prompt.instruction.strip() if prompt else ""
    changed = leased.instruction.text if leased.instruction.text.strip() != own else ""
    messages: list[ChatMessage] = [
        {"role": message.role, "content": text_of(message.pattern)}
        for message in (prompt.ordered if prompt else ())
    ]
    # The messages are known to be the prompt's own, so nothing is left to be recognised.
    return apply(
        messages,
        prompt=None,
        instruction=text_of(changed),
        demonstrations=leased.demonstrations.demonstrations,
        example_id=leased.example_id,
    )


def _response(posted: TraceRequest) -> JsonObject | None:
    if posted.response is None and posted.output is not None:
        return _completion_of(posted.output, whole=not posted.error)
    return posted.response


def _told_usage(posted: TraceRequest, response: JsonObject | None) -> Usage:
    return Usage(**dict(posted.usage)) if posted.usage else Completion(response).usage


def _completion_of(output: str, *, whole: bool) -> JsonObject:
    message = {"role": "assistant", "content": output}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop" if whole else None}]
    }


def _said(text: str) -> str:
    """A caller's text, in the length and the characters that can be stored."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:LONGEST_SAYING]
