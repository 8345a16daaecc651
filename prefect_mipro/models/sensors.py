"""Sensors: what was observed on a rollout, and the frames that gather them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from prefect_mipro.models.base import Record
from prefect_mipro.models.levers import LeverVersions
from prefect_mipro.models.rollouts import Reward, Trace


class SensorKind(StrEnum):
    """What a sensor observes, in the wire's words."""

    REWARD = "reward"
    TIMING = "timing"
    ROLLOUT = "rollout"
    RESOURCE = "resource"
    SAFETY = "safety"
    QUALITY = "quality"
    TRACE = "trace"
    CONTEXT_APPLY = "context_apply"
    EXPERIMENT = "experiment"
    CUSTOM = "custom"


class Sensor(Record):
    """One named observation: `latency` 0.21 `seconds`, `context_apply` true."""

    name: str
    kind: SensorKind
    value: float | bool | str | None
    units: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class SensorFrame(Record):
    """The sensors of one proxied call or one reward, with the lever versions that made them."""

    frame_id: str
    session_id: str
    rollout_id: str
    candidate_id: str | None
    created_at: datetime
    sensors: tuple[Sensor, ...]
    lever_versions: dict[str, int] = Field(default_factory=dict)
    trace_ids: tuple[str, ...] = ()


def frame_of_call(trace: Trace, versions: LeverVersions) -> SensorFrame:
    """The frame of a call; its sensors are what the trace says, as single observations."""
    counted = {"estimated": True} if trace.estimated else {}
    why = {"reason": trace.unapplied_reason} if trace.unapplied_reason else {}
    error = {"error": trace.error} if trace.error else {}
    observed: list[tuple[str, SensorKind, float | None, str | None, dict[str, Any]]] = [
        ("latency", SensorKind.TIMING, trace.latency_seconds, "seconds", {}),
        ("prompt_tokens", SensorKind.RESOURCE, trace.usage.prompt_tokens, "tokens", counted),
        (
            *("completion_tokens", SensorKind.RESOURCE, trace.usage.completion_tokens, "tokens"),
            counted,
        ),
        ("prompt_applied", SensorKind.CONTEXT_APPLY, not why, None, why),
        ("status", SensorKind.TRACE, trace.status, None, error),
        ("time_to_first_token", SensorKind.TIMING, trace.first_byte_seconds, "seconds", {}),
        ("cost_usd", SensorKind.RESOURCE, trace.cost_usd, "USD", counted),
    ]
    return SensorFrame(
        frame_id=f"frame_{trace.trace_id.removeprefix('trace_')}",
        session_id=trace.session_id,
        rollout_id=trace.rollout_id,
        candidate_id=trace.candidate_id,
        created_at=trace.created_at,
        sensors=tuple(
            Sensor(name=name, kind=kind, value=value, units=units, metadata=metadata)
            for name, kind, value, units, metadata in observed
            if value is not None
        ),
        lever_versions=versions,
        trace_ids=(trace.trace_id, trace.rollout_id),
    )


def frame_of_reward(
    reward: Reward, *, rollout_id: str, candidate_id: str, versions: LeverVersions
) -> SensorFrame:
    """The frame of a reward that has its rollout."""
    sensor = Sensor(
        name="reward",
        kind=SensorKind.REWARD,
        value=reward.value,
        metadata={"score": reward.score, "reward_id": reward.reward_id},
    )
    return SensorFrame(
        frame_id=f"frame_{reward.reward_id.removeprefix('reward_')}",
        session_id=reward.session_id,
        rollout_id=rollout_id,
        candidate_id=candidate_id,
        created_at=reward.received_at,
        sensors=(sensor,),
        lever_versions=versions,
        trace_ids=() if reward.trace_ref is None else (reward.trace_ref,),
    )


class SensorFrameSummary(Record):
    """A frame as status lists it."""

    frame_id: str
    created_at: datetime | None = None
    sensor_count: int | None = None
    sensor_kinds: tuple[str, ...] = ()
    trace_ids: tuple[str, ...] = ()
    lever_versions: dict[str, int] = Field(default_factory=dict)
