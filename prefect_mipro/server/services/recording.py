"""What is kept of a proxied call: its trace, its sensor frame, its counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prefect_mipro.errors import MiproError
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import LeverName, LeverVersions, lever_id, prompt_lever_id
from prefect_mipro.models.rollouts import Trace
from prefect_mipro.models.sensors import Sensor, SensorFrame, SensorKind
from prefect_mipro.optimizer.prompts import Applied, answer_text, user_text
from prefect_mipro.server.services.calls import Served
from prefect_mipro.server.services.completions import Completion
from prefect_mipro.server.services.identity import Clock, NewId
from prefect_mipro.server.store.interface import Store

CALLER_WENT_AWAY = 499


class Recorder:
    """The traces and frames of all sessions."""

    def __init__(self, store: Store, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._under_way: set[asyncio.Task[None]] = set()

    async def record(
        self,
        candidate: Candidate,
        rollout_id: str,
        applied: Applied,
        served: Served | None,
        failure: MiproError | None,
        latency_seconds: float,
    ) -> None:
        """Write the trace and its frame, also when the caller has gone away by now."""
        self.keep(
            self._trace(candidate, rollout_id, applied, served, failure, latency_seconds),
            candidate=candidate,
        )
        await asyncio.shield(asyncio.gather(*self._under_way))

    def keep(self, trace: Trace, *, candidate: Candidate) -> None:
        """Have the trace of that candidate, and its frame, written soon."""
        frame = self._frame(trace, candidate)
        recording = asyncio.create_task(self._store.record_call(trace, frame))
        self._under_way.add(recording)
        recording.add_done_callback(self._under_way.discard)

    async def post(self, trace: Trace, *, candidate: Candidate) -> Trace:
        """Write the trace of a call made elsewhere, once; the one that has its id is returned."""
        return await self._store.post_trace(trace, self._frame(trace, candidate))

    def _frame(self, trace: Trace, candidate: Candidate) -> SensorFrame:
        return SensorFrame(
            frame_id=self._new_id("frame"),
            session_id=trace.session_id,
            rollout_id=trace.rollout_id,
            candidate_id=trace.candidate_id,
            created_at=trace.created_at,
            sensors=tuple(_sensors(trace)),
            lever_versions=lever_versions(candidate),
            trace_ids=(trace.trace_id, trace.rollout_id),
        )

    def _trace(
        self,
        candidate: Candidate,
        rollout_id: str,
        applied: Applied,
        served: Served | None,
        failure: MiproError | None,
        latency_seconds: float,
    ) -> Trace:
        completion = served.completion if served else Completion(error="the caller went away")
        error = failure.message if failure else completion.error
        return Trace(
            trace_id=self._new_id("trace"),
            session_id=candidate.session_id,
            rollout_id=rollout_id,
            candidate_id=candidate.candidate_id,
            messages=applied.messages,
            response=completion.response,
            input=user_text(applied.messages),
            output=answer_text(completion.response or {}),
            unapplied_reason=applied.reason,
            status=failure.status if failure else served.status if served else CALLER_WENT_AWAY,
            error=error,
            latency_seconds=latency_seconds,
            usage=completion.usage,
            created_at=self._clock(),
        )

    async def close(self) -> None:
        """Wait until every call that has ended is recorded."""
        await asyncio.gather(*self._under_way)


def lever_versions(candidate: Candidate) -> LeverVersions:
    """The versions a candidate stands for, by the wire's lever ids."""
    session_id = candidate.session_id
    return {
        prompt_lever_id(session_id): candidate.number,
        lever_id(session_id, LeverName.INSTRUCTION): candidate.instruction_version,
        lever_id(session_id, LeverName.DEMONSTRATIONS): candidate.demonstrations_version,
    }


def _sensors(trace: Trace) -> Iterator[Sensor]:
    yield Sensor(
        name="latency", kind=SensorKind.TIMING, value=trace.latency_seconds, units="seconds"
    )
    yield Sensor(
        name="prompt_tokens",
        kind=SensorKind.RESOURCE,
        value=trace.usage.prompt_tokens,
        units="tokens",
    )
    yield Sensor(
        name="completion_tokens",
        kind=SensorKind.RESOURCE,
        value=trace.usage.completion_tokens,
        units="tokens",
    )
    yield Sensor(
        name="prompt_applied",
        kind=SensorKind.CONTEXT_APPLY,
        value=not trace.unapplied_reason,
        metadata={"reason": trace.unapplied_reason} if trace.unapplied_reason else {},
    )
    yield Sensor(
        name="status",
        kind=SensorKind.TRACE,
        value=trace.status,
        metadata={"error": trace.error} if trace.error else {},
    )
