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
from prefect_mipro.models.sessions import Event, Session
from prefect_mipro.server.json_text import json_text
from prefect_mipro.server.store.schema import microseconds, rollouts, traces, words

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
        "given_up_at": None,
    }


def seed_of(example_id: str | None) -> int | None:
    """The example's id as a number, where it is one that a database can hold."""
    return int(example_id) if example_id and _SEED.fullmatch(example_id) else None


def example_key(example_id: str) -> str:
    """The example's id, or a digest of one that is too long for an index."""
    if len(example_id) <= ID_CHARACTERS:
        return example_id
    return hashlib.sha256(example_id.encode("utf-8", "replace")).hexdigest()


# Rows for statements that are given many at once: plain values in the order of these columns.

_COLUMNS = rollouts.c
ROLLOUT_COLUMNS = (
    _COLUMNS.session_id,
    _COLUMNS.rollout_id,
    _COLUMNS.candidate_id,
    _COLUMNS.correlation_id,
    _COLUMNS.example_id,
    _COLUMNS.seed,
    _COLUMNS.propensity,
    _COLUMNS.duel_number,
    _COLUMNS.predicted_reward,
    _COLUMNS.pinned_at,
    _COLUMNS.position,
    _COLUMNS.answered_calls,
    _COLUMNS.epoch,
    _COLUMNS.applied,
)
TRACE_FIELDS = frozenset(Trace.model_fields) - {"usage"}
TRACE_COLUMNS = tuple(column for column in traces.c if column.name != "position")


def rollout_row(rollout: Rollout, *, position: int, epoch: int) -> tuple[Any, ...]:
    """A new rollout: its reward comes later."""
    return (
        rollout.session_id,
        rollout.rollout_id,
        rollout.candidate_id,
        _words(rollout.correlation_id),
        _words(rollout.example_id),
        seed_of(rollout.example_id),
        rollout.propensity,
        rollout.duel_number,
        rollout.predicted_reward,
        microseconds(rollout.pinned_at),
        position,
        0,
        epoch,
        rollout.applied,
    )


def trace_row(trace: Trace) -> tuple[Any, ...]:
    return (
        trace.trace_id,
        trace.session_id,
        trace.rollout_id,
        trace.candidate_id,
        trace.status,
        trace.latency_seconds,
        trace.first_byte_seconds,
        trace.usage.prompt_tokens,
        trace.usage.completion_tokens,
        trace.estimated,
        trace.cost_usd,
        _words(trace.model),
        microseconds(trace.created_at),
        words(trace.unapplied_reason),
        words(trace.error),
        words(trace.input),
        words(trace.output),
        json_text(trace.messages),
        None if trace.response is None else json_text(trace.response),
    )


def trace_record(row: RowValues) -> Trace:
    values = {name: row[name] for name in TRACE_FIELDS}
    tokens = {name: row[name] for name in ("prompt_tokens", "completion_tokens")}
    return Trace.model_validate({**values, "usage": tokens})


def _words(text: str | None) -> str | None:
    return None if text is None else words(text)


def reward_record(row: RowValues) -> Reward:
    return Reward.model_validate(dict(row))


def duel_record(row: RowValues) -> Duel:
    return Duel.model_validate(dict(row))


def event_record(row: RowValues) -> Event:
    return Event.model_validate(dict(row))
