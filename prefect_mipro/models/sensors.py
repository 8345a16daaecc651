"""Sensors: what was observed on a rollout, and the frames that gather them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from prefect_mipro.models.base import Record


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


class SensorFrameSummary(Record):
    """A frame as status lists it."""

    frame_id: str
    created_at: datetime | None = None
    sensor_count: int | None = None
    sensor_kinds: tuple[str, ...] = ()
    trace_ids: tuple[str, ...] = ()
    lever_versions: dict[str, int] = Field(default_factory=dict)
