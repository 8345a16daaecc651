"""Recording: the trace of a call, and its counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from prefect_mipro.errors import Conflict, MiproError
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.rollouts import CallFailure, Rollout, Trace
from prefect_mipro.optimizer.demonstrations import room_for_demonstrations
from prefect_mipro.optimizer.prompts import Applied, answer_text, user_text
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.calls import Served, likely_usage
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.privacy import Redaction
from prefect_mipro.server.services.session_cache import LiveSession
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.upstream.completions import Completion
from prefect_mipro.server.upstream.prompt_failures import PromptFailure

CALLER_WENT_AWAY = 499

log = logging.getLogger(__name__)


class Recorder:
    """Recording of the calls of all sessions."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        redaction: Redaction,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._journal = journal
        self._redaction = redaction
        self._clock = clock
        self._new_id = new_id

    def record(
        self,
        live: LiveSession,
        candidate: Candidate,
        rollout_id: str,
        applied: Applied,
        served: Served | None,
        error: MiproError | None,
        *,
        latency_seconds: float,
        asked_model: str | None,
        failure: CallFailure | None,
        if_removed: Rollout | None,
    ) -> Trace:
        """Record a call and its cost, also when its caller has gone away.

        `if_removed` is pinned where the call's rollout turns out to be removed before it began.
        """
        completion = served.completion if served else Completion(error="the caller went away")
        output = answer_text(completion.response)
        usage = completion.usage
        # The model has worked, and may be paid for it, whether or not the answer came to its end.
        worked = not served.is_refusal if served else error is None
        estimated = worked and not (usage.prompt_tokens or usage.completion_tokens)
        if estimated:
            usage = likely_usage(applied.messages, output)
        model = served.model if served else None
        if served and served.is_fallback:
            asked_model = model  # the first model's price is not the fallback's
        cost_usd = live.cost_usd_of(model, usage, asked_model=asked_model)
        live.spend(usage, cost_usd)
        trace = Trace(
            trace_id=self._new_id("trace"),
            session_id=candidate.session_id,
            rollout_id=rollout_id,
            candidate_id=candidate.candidate_id,
            messages=applied.messages,
            response=completion.response,
            input=user_text(applied.messages),
            output=output,
            unapplied_reason=applied.reason,
            status=error.status if error else served.status if served else CALLER_WENT_AWAY,
            error=error.message if error else completion.error,
            latency_seconds=latency_seconds,
            first_byte_seconds=served.first_byte_seconds if served else None,
            usage=usage,
            estimated=estimated,
            cost_usd=cost_usd,
            model=model,
            created_at=self._clock(),
        )
        size_bytes = served.size_bytes if served else 0
        kept = self._redaction.trace(trace, live.config)
        if kept is not trace:
            size_bytes = 0
        size_bytes += sum(len(str(message.get("content"))) for message in kept.messages)
        call = CallRecord(
            kept, applied=applied.mismatch is None, failure=failure, if_removed=if_removed
        )
        self._journal.record(call, size_bytes=size_bytes)
        if applied.mismatch:
            _tell_unapplied(live, applied.mismatch.looked_for, applied.mismatch.came)
        return trace

    async def post(
        self,
        trace: Trace,
        live: LiveSession,
        *,
        failure: CallFailure | None,
    ) -> bool:
        """Write the trace of a call made elsewhere, once; whether its id was there already.

        Raises Conflict where it stands for another trace.
        """
        kept = self._redaction.trace(trace, live.config)
        # Only the program knows that it used the prompt; that it did not, it says.
        applied = False if trace.unapplied_reason else None
        call = CallRecord(kept, applied=applied, failure=failure)
        stored = await self._store.post_trace(call)
        if _content(stored) != _content(kept):
            raise Conflict(
                f"the trace id {trace.trace_id!r} stands for another trace already, which was not "
                "changed; give each trace an id of its own, such as a UUID"
            )
        if stored is kept and trace.unapplied_reason:
            _tell_unapplied(live, "the candidate's prompt", "a posted trace without it")
        return stored is not kept


def _tell_unapplied(live: LiveSession, looked_for: str, came: str) -> None:
    """Log the first call of a session without its candidate's prompt, the tenth, and so on."""
    if live.count_unapplied():
        log.warning(
            "prompt_not_applied",
            extra={
                "session_id": live.session_id,
                "calls": live.unapplied_calls,
                "looked_for": looked_for,
                "came": came,
                "hint": "send the messages of prompt_learning.initial_prompt, or state your own "
                "there; the session's status quotes both",
            },
        )


def call_failure(
    candidate: Candidate,
    told: PromptFailure,
    *,
    shares: Mapping[str, float],
    sent: int,
    added: int,
) -> CallFailure:
    """The failure of a call because of its candidate's prompt, as it is stored.

    Of `sent` characters of the prompt the candidate added some to the caller's own.
    """
    room = room_for_demonstrations(sent, added=added, fits=told.fits) if told.too_long else None
    return CallFailure(
        candidate_id=candidate.candidate_id,
        kind=told.kind,
        reason=told.reason,
        shares=dict(shares),
        demonstration_room=room,
    )


def _content(trace: Trace) -> JsonObject:
    """What two traces of one id must have in common: what was posted, not what followed from it."""
    return trace.model_dump(exclude={"created_at", "cost_usd", "input", "output", "estimated"})
