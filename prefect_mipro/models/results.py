"""What a status object says, read leniently: it may come from a backend that is not ours.

Section 7 of the wire protocol. A value is looked up at the top level of the status, then in its
`metadata`, then in its `job_metadata`; one that cannot be used counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import Field

from prefect_mipro.errors import AnswerInvalid
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.levers import LeverVersions, MiproLeverSummary
from prefect_mipro.models.sensors import SensorFrameSummary

_BEST_REWARD_KEYS = ("best_reward", "best_score", "best_train_reward", "best_train_score")
_REWARD_KEYS = ("mean_reward", "reward", "avg_reward", "train_reward", "validation_reward")
_ERROR_KEYS = ("error", "error_message", "failure_reason", "message")
_CONTENT_KEYS = (
    "candidate_content",
    "candidate_code",
    "solver_code",
    "program_text",
    "code",
    "instruction_text",
    "instruction",
    "prompt_text",
    "text",
    "system_prompt",
)
_SHORT_CONTENT_KEYS = (
    "candidate_code",
    "candidate_content",
    "prompt_text",
    "instruction",
    "text",
)


class ResultStatus(StrEnum):
    """How far an optimization has come."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @classmethod
    def parse(cls, word: str) -> ResultStatus:
        """The status that a word means; a word that nobody knows means pending."""
        normal = word.strip().lower().replace(" ", "_")
        return cls(_STATUS_WORDS.get(normal, normal if normal in set(cls) else cls.PENDING))

    @property
    def is_terminal(self) -> bool:
        """Whether no other status can follow."""
        return self in (self.SUCCEEDED, self.FAILED, self.CANCELLED)

    @property
    def is_success(self) -> bool:
        """Whether it succeeded."""
        return self is self.SUCCEEDED


_STATUS_WORDS = {
    "success": "succeeded",
    "complete": "succeeded",
    "completed": "succeeded",
    "canceled": "cancelled",
    "cancel": "cancelled",
    "failure": "failed",
    "error": "failed",
    "in_progress": "running",
}


class PolicyCandidate(Record):
    """A candidate as lists of them have it. `raw` is the item itself."""

    candidate_id: str
    candidate_type: str | None = None
    artifact_kind: str = "unknown"
    artifact_payload: Any = None
    artifact_preview: str | None = None
    candidate_content: str | None = None
    status: str | None = None
    optimization_mode: str | None = None
    score: float | None = None
    reward: float | None = None
    objective: float | None = None
    raw: JsonObject = Field(default_factory=dict)

    @classmethod
    def from_dict(cls, item: Mapping[str, Any]) -> Self:
        """Read one item of a list of candidates."""
        payload = _first(item, ("artifact_payload", "candidate_artifact"))
        objective = _objective(item)
        reward = _reward(item)
        return cls(
            candidate_id=_stripped(item.get("candidate_id") or "") or "",
            candidate_type=_stripped(item.get("candidate_type")),
            artifact_kind=_stripped(item.get("artifact_kind") or "") or "unknown",
            artifact_payload=payload,
            artifact_preview=_text(item.get("artifact_preview")),
            candidate_content=_candidate_content(item, payload),
            status=_stripped(item.get("status")),
            optimization_mode=_stripped(_first(item, ("optimization_mode", "mode"))),
            score=_number(item.get("score")) or objective or reward,
            reward=reward,
            objective=objective,
            raw=dict(item),
        )


class _Result(Record):
    """What both results have."""

    job_id: str
    status: ResultStatus
    best_reward: float | None = None
    best_candidate: Any = None
    attempted_candidates: list[PolicyCandidate] = Field(default_factory=list)
    optimized_candidates: list[PolicyCandidate] = Field(default_factory=list)
    lever_summary: JsonObject | None = None
    sensor_frames: list[JsonObject] = Field(default_factory=list)
    lever_versions: LeverVersions = Field(default_factory=dict)
    best_lever_version: int | None = None
    error: str | None = None
    raw: JsonObject = Field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.status.is_success

    @property
    def failed(self) -> bool:
        """Whether it ended in failure."""
        return self.status is ResultStatus.FAILED

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.status.is_terminal

    @property
    def best_prompt(self) -> Any:
        """The older name of `best_candidate`."""
        return self.best_candidate

    @property
    def best_candidate_content(self) -> str | None:
        """The best candidate's text; failing that, the first listed candidate's."""
        places = (self.best_candidate, self.raw.get("best_candidate"), self.raw.get("best_prompt"))
        for place in places:
            if text := _text(place) or _content(place):
                return text
        for key in ("optimized_candidates", "frontier", "candidates", "archive"):
            for candidate in _objects(self.raw.get(key)):
                if text := _content(candidate):
                    return text
        return None

    @property
    def lever_summary_typed(self) -> MiproLeverSummary | None:
        """`lever_summary` as a record; `None` when it is absent or empty."""
        return _lever_summary(self.lever_summary) if self.lever_summary else None

    @property
    def sensor_frame_summaries_typed(self) -> list[SensorFrameSummary]:
        """`sensor_frames` as records, without those that have no id."""
        return [_frame(frame) for frame in self.sensor_frames if _text(frame.get("frame_id"))]


class PolicyOptimizationResult(_Result):
    """A status, with lever versions inferred from `lever_summary` where it leaves them out."""

    algorithm: str | None = None

    @classmethod
    def from_response(
        cls, job_id: str, data: Mapping[str, Any], *, algorithm: str | None = None
    ) -> Self:
        """Read a status object. Raises AnswerInvalid when its `status` is no text."""
        summary = _lookup(data, "lever_summary")
        chosen = _chosen_version(summary)
        versions = _versions(_lookup(data, "lever_versions"))
        if (
            not versions
            and chosen is not None
            and isinstance(lever := summary.get("prompt_lever_id"), str)
        ):
            versions = {lever: chosen}
        best = _integer(_lookup(data, "best_lever_version"))
        return cls(
            **_common(job_id, data),
            algorithm=algorithm or _text(data.get("algorithm")),
            lever_versions=versions,
            best_lever_version=_best_version(chosen if best is None else best, versions),
        )


class PromptLearningResult(_Result):
    """A status, read without inference from `lever_summary`."""

    @classmethod
    def from_response(cls, job_id: str, data: Mapping[str, Any]) -> Self:
        """Read a status object. Raises AnswerInvalid when its `status` is no text."""
        versions = _versions(_lookup(data, "lever_versions"))
        best = _integer(_lookup(data, "best_lever_version"))
        return cls(
            **_common(job_id, data),
            lever_versions=versions,
            best_lever_version=_best_version(best, versions),
        )


def _common(job_id: str, data: Mapping[str, Any]) -> JsonObject:
    status = data.get("status", "pending")
    if not isinstance(status, str):
        raise AnswerInvalid(
            f"the status object's status is {status!r}, which is no text", status=200
        )
    summary = _lookup(data, "lever_summary")
    return {
        "job_id": job_id,
        "status": ResultStatus.parse(status),
        "best_reward": _best_reward(data),
        "best_candidate": _lookup(data, "best_candidate") or _lookup(data, "best_prompt"),
        "attempted_candidates": _candidates(data, "attempted_candidates"),
        "optimized_candidates": _candidates(data, "optimized_candidates"),
        "lever_summary": summary if isinstance(summary, Mapping) else None,
        "sensor_frames": list(_objects(_lookup(data, "sensor_frames"))),
        "error": str(_first(data, _ERROR_KEYS) or "").strip() or None,
        "raw": dict(data),
    }


def _lookup(data: Mapping[str, Any], key: str) -> Any:
    tables = (data, data.get("metadata"), data.get("job_metadata"))
    found = (table.get(key) for table in tables if isinstance(table, Mapping))
    return next((value for value in found if value is not None), None)


def _candidates(data: Mapping[str, Any], key: str) -> list[PolicyCandidate]:
    return [PolicyCandidate.from_dict(item) for item in _objects(_lookup(data, key))]


def _best_reward(data: Mapping[str, Any]) -> float | None:
    tables = (data, data.get("metadata"), data.get("job_metadata"))
    known = [table for table in tables if isinstance(table, Mapping)]
    for table in known:
        best = _number(_first(table, _BEST_REWARD_KEYS))
        if best is not None:
            return best
    lists = [data.get("frontier"), data.get("archive"), *(t.get("candidates") for t in known)]
    rewards = (_reward(item) for items in lists for item in _objects(items))
    return max((reward for reward in rewards if reward is not None), default=None)


def _reward(candidate: Mapping[str, Any]) -> float | None:
    for key in _REWARD_KEYS:
        reward = _number(candidate.get(key))
        if reward is not None:
            return reward
    parts = [_number(part.get("reward")) for part in _objects(candidate.get("instance_objectives"))]
    rewards = [part for part in parts if part is not None]
    if rewards:
        return sum(rewards) / len(rewards)
    nested = (_number(table.get("reward")) for table in _objects(list(candidate.values())))
    return next((reward for reward in nested if reward is not None), None)


def _objective(candidate: Mapping[str, Any]) -> float | None:
    objective = candidate.get("objective")
    return _number(objective.get("reward") if isinstance(objective, Mapping) else objective)


def _candidate_content(item: Mapping[str, Any], payload: Any) -> str | None:
    own = item.get("candidate_content")
    if isinstance(own, str) and own.strip():
        return own
    return _first_text(item, _SHORT_CONTENT_KEYS) or _first_text(payload, _SHORT_CONTENT_KEYS)


def _content(candidate: Any) -> str | None:
    """The text in a candidate's table, wherever backends are known to put it."""
    if not isinstance(candidate, Mapping):
        return None
    if text := _first_text(candidate, _CONTENT_KEYS):
        return text
    stages = candidate.get("stage_payloads")
    inner = (candidate.get("program_candidate"), *_objects_in(stages))
    if text := next(filter(None, map(_content, inner)), None):
        return text
    messages = (
        _text(message.get("content") or message.get("pattern") or message.get("text"))
        for message in _objects(candidate.get("messages"))
    )
    return "\n\n".join(filter(None, messages)) or _content(candidate.get("candidate"))


def _lever_summary(table: Mapping[str, Any]) -> MiproLeverSummary:
    prompt_lever_id = table.get("prompt_lever_id")
    return MiproLeverSummary(
        prompt_lever_id=prompt_lever_id if isinstance(prompt_lever_id, str) else None,
        candidate_lever_versions=_versions(table.get("candidate_lever_versions")),
        best_candidate_id=_id(table.get("best_candidate_id")),
        selected_candidate_id=_id(table.get("selected_candidate_id")),
        baseline_candidate_id=_id(table.get("baseline_candidate_id")),
        lever_count=_integer(table.get("lever_count")),
        mutation_count=_integer(table.get("mutation_count")),
        latest_version=_integer(table.get("latest_version")),
    )


def _frame(frame: Mapping[str, Any]) -> SensorFrameSummary:
    return SensorFrameSummary(
        frame_id=frame["frame_id"],
        created_at=_time(frame.get("created_at")),
        sensor_count=_integer(frame.get("sensor_count")),
        sensor_kinds=tuple(_words(frame.get("sensor_kinds"))),
        trace_ids=tuple(_words(frame.get("trace_ids"))),
        lever_versions=_versions(frame.get("lever_versions")),
    )


def _chosen_version(summary: Any) -> int | None:
    """The version of the selected candidate, else of the best, else of the only one."""
    table = summary if isinstance(summary, Mapping) else {}
    versions = table.get("candidate_lever_versions")
    if not isinstance(versions, Mapping):
        return None
    only = next(iter(versions)) if len(versions) == 1 else None
    chosen = table.get("selected_candidate_id") or table.get("best_candidate_id") or only
    return _integer(versions.get(str(chosen)))


def _best_version(version: int | None, versions: LeverVersions) -> int | None:
    return version or max(versions.values()) if versions else version


def _versions(value: Any) -> LeverVersions:
    items = value.items() if isinstance(value, Mapping) else ()
    parsed = {str(key): _integer(version) for key, version in items}
    return {key: version for key, version in parsed.items() if version is not None}


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    return (
        (item for item in value if isinstance(item, Mapping))
        if isinstance(value, list)
        else iter(())
    )


def _objects_in(table: Any) -> Iterator[Mapping[str, Any]]:
    return _objects(list(table.values()) if isinstance(table, Mapping) else None)


def _words(value: Any) -> Iterator[str]:
    return (
        (str(item) for item in value if isinstance(item, str | int))
        if isinstance(value, list)
        else iter(())
    )


def _first(table: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((table[key] for key in keys if table.get(key) is not None), None)


def _first_text(table: Any, keys: Iterable[str]) -> str | None:
    if not isinstance(table, Mapping):
        return None
    return next((text for key in keys if (text := _text(table.get(key)))), None)


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _stripped(value: Any) -> str | None:
    return None if value is None else str(value).strip()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value.strip()) if isinstance(value, str) else None
    except ValueError:
        return None
