"""Records to rows and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import RowMapping

from prefect_mipro.models.base import ID_CHARACTERS
from prefect_mipro.models.candidates import Candidate, Duel, Statistics
from prefect_mipro.models.levers import (
    DemonstrationsValue,
    InstructionValue,
    LeverName,
    LeverVersion,
)
from prefect_mipro.models.rollouts import Reward, Rollout, Trace
from prefect_mipro.models.sensors import SensorFrame
from prefect_mipro.models.sessions import Event, Session

Values = dict[str, Any]
RowValues = Mapping[str, Any] | RowMapping

_STATISTICS = tuple(Statistics.model_fields)
_SEED = re.compile(r"-?[0-9]{1,18}")
_VALUE_OF_LEVER: dict[str, type[InstructionValue] | type[DemonstrationsValue]] = {
    LeverName.INSTRUCTION: InstructionValue,
    LeverName.DEMONSTRATIONS: DemonstrationsValue,
}


def session_record(row: RowValues) -> Session:
    return Session.model_validate(dict(row))


def session_values(session: Session) -> Values:
    return dict(session)


def lever_record(row: RowValues) -> LeverVersion:
    value = _VALUE_OF_LEVER[row["lever"]].model_validate(row["value"])
    return LeverVersion.model_validate({**row, "value": value})


def lever_values(session_id: str, lever: LeverVersion) -> Values:
    """A new version: whether it is retired follows from its candidates."""
    values = {
        **dict(lever),
        "session_id": session_id,
        "value": lever.value.model_dump(mode="json"),
        "provenance": lever.provenance.model_dump(mode="json"),
    }
    del values["retired_at"]
    return values


def candidate_record(row: RowValues) -> Candidate:
    statistics = {name: row[name] for name in _STATISTICS}
    return Candidate.model_validate({**row, "statistics": statistics})


def candidate_values(session_id: str, candidate: Candidate) -> Values:
    """A new candidate: its statistics start at zero."""
    values = {**dict(candidate), "session_id": session_id}
    del values["statistics"]
    return values


def rollout_record(row: RowValues) -> Rollout:
    return Rollout.model_validate(dict(row))


def rollout_values(rollout: Rollout, *, position: int, epoch: int) -> Values:
    """A new rollout: its reward comes later."""
    return {
        **dict(rollout),
        "position": position,
        "epoch": epoch,
        "seed": seed_of(rollout.example_id),
        "reward": None,
    }


def seed_of(example_id: str | None) -> int | None:
    """The example's id as a number, where it is one that a database can hold."""
    return int(example_id) if example_id and _SEED.fullmatch(example_id) else None


def example_key(example_id: str) -> str:
    """The example's id, or a digest of one that is too long for an index."""
    if len(example_id) <= ID_CHARACTERS:
        return example_id
    return hashlib.sha256(example_id.encode("utf-8", "replace")).hexdigest()


def trace_values(trace: Trace) -> Values:
    values = {**dict(trace), **dict(trace.usage)}
    del values["usage"]
    return values


def frame_record(row: RowValues) -> SensorFrame:
    return SensorFrame.model_validate(dict(row))


def frame_values(frame: SensorFrame) -> Values:
    return {**dict(frame), "sensors": [sensor.model_dump(mode="json") for sensor in frame.sensors]}


def reward_record(row: RowValues) -> Reward:
    return Reward.model_validate(dict(row))


def duel_record(row: RowValues) -> Duel:
    return Duel.model_validate(dict(row))


def event_record(row: RowValues) -> Event:
    return Event.model_validate(dict(row))
