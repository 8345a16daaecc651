"""What is kept of the words of programs and their users: all of them, or nothing.

Numbers stay in any case: usage, latency, cost, scores, whether a call failed. So do ids.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_mipro.config import MiproConfig, TraceContent
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.rollouts import Reward, Trace
from prefect_mipro.models.sessions import Session

# In the place of what went wrong with a call: that it did stays to be seen.
NOT_KEPT = "not kept"
DIGEST_PREFIX = "hmac-sha256:"
DIGEST_CHARACTERS = 32
EXAMPLE_KEYS = ("example_id", "seed")

_SAID = frozenset({"error", "reason"})
_WARNING = (
    "no texts of traces and rewards are kept (trace_content is 'off'), so nothing is learned from "
    "what was said: no demonstrations from traffic, and proposals that know the prompts and the "
    "rewards only"
)


@dataclass(frozen=True)
class Redaction:
    """The server's own setting. A session's config may ask for less to be kept, never for more."""

    content: TraceContent = TraceContent.FULL

    def keeps_all(self, config: MiproConfig) -> bool:
        """Whether the session's texts are kept."""
        return TraceContent.OFF not in (self.content, config.mipro.trace_content)

    def warnings(self, config: MiproConfig) -> list[str]:
        """What the session loses by it."""
        return [] if self.keeps_all(config) else [_WARNING]

    def trace(self, trace: Trace, config: MiproConfig) -> Trace:
        """The trace as it may be kept. Nothing in it is an example to learn from."""
        if self.keeps_all(config):
            return trace
        return trace.model_copy(update=_emptied_trace(dict(trace)))

    def reward(self, reward: Reward, config: MiproConfig) -> Reward:
        """The reward as it may be kept."""
        if self.keeps_all(config):
            return reward
        return reward.model_copy(update=_emptied_reward(dict(reward)))

    def rows(self, part: Part, rows: Sequence[JsonObject]) -> Sequence[JsonObject]:
        """Rows of an export as they may be kept. What its config asks for was done where it ran."""
        if self.content is TraceContent.FULL:
            return rows
        match part:
            case Part.TRACE:
                return [
                    {**row, **_emptied_trace(row), "frame": _without_words(row.get("frame"))}
                    for row in rows
                ]
            case Part.REWARD:
                return [{**row, **_emptied_reward(row)} for row in rows]
            case Part.ROLLOUT:
                return [{**row, "example_trace_id": None} for row in rows]
            case _:
                return rows


def digest(session: Session, text: str) -> str:
    """A keyed digest of the text, which stands in for it in the session's events.

    The HMAC's key is the session's own, is in no answer and no export, and is deleted with the
    session.
    """
    made = hmac.new(session.digest_key.encode(), text.encode("utf-8", "replace"), hashlib.sha256)
    return f"{DIGEST_PREFIX}{made.hexdigest()[:DIGEST_CHARACTERS]}"


def _emptied_trace(values: Mapping[str, Any]) -> JsonObject:
    """The fields of a trace that change."""
    return {
        "messages": (),
        "response": None,
        # Of these examples are made.
        "input": "",
        "output": "",
        "error": NOT_KEPT if values.get("error") else "",
        "unapplied_reason": NOT_KEPT if values.get("unapplied_reason") else "",
    }


def _emptied_reward(values: Mapping[str, Any]) -> JsonObject:
    """The fields of a reward that change."""
    told = values.get("metadata")
    metadata = told if isinstance(told, Mapping) else {}
    kept = {name: metadata[name] for name in EXAMPLE_KEYS if name in metadata}
    return {"feedback": None, "expected": None, "artifact": None, "metadata": kept or None}


def _objects(value: object) -> list[JsonObject]:
    found = value if isinstance(value, list | tuple) else []
    return [item for item in found if isinstance(item, dict)]


def _without_words(frame: object) -> object:
    """A sensor frame that says that something was amiss, and not what."""
    if not isinstance(frame, dict):
        return frame
    sensors = [
        {
            **sensor,
            "metadata": {
                name: NOT_KEPT if name in _SAID else value
                for name, value in (sensor.get("metadata") or {}).items()
            },
        }
        for sensor in _objects(frame.get("sensors"))
    ]
    return {**frame, "sensors": sensors}
