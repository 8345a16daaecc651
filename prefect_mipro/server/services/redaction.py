"""What of the words of programs and their users is kept: all of them, digests, or nothing.

Numbers stay in any case: usage, latency, cost, scores, whether a call failed. So do ids, and the
role of each message. A digest is an HMAC with a key of the session's own, which is told nowhere and
ends with the session: equal texts of one session have equal digests, and to check a guess takes the
key. It is not the secret of the proxy's URL, which may leak and be rotated.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from prefect_mipro.config import MiproConfig, TraceContent
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.rollouts import Reward, Trace
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.json_text import json_text

# In the place of what went wrong with a call: that it did stays to be seen.
NOT_KEPT = "not kept"
DIGEST_PREFIX = "hmac-sha256:"
DIGEST_CHARACTERS = 32
EXAMPLE_KEYS = ("example_id", "seed")
# The parts of an export that hold texts, or name those to learn from.
WITH_TEXTS = frozenset({Part.TRACE, Part.REWARD, Part.ROLLOUT})

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_SAID = frozenset({"error", "reason"})
_WARNING = (
    "of traces and rewards {what} (trace_content is {content!r}), so nothing is learned from what "
    "was said: no demonstrations from traffic, and proposals that know the prompts and the rewards "
    "only"
)
_KEPT = {
    TraceContent.HASHES: "only digests of their texts are kept",
    TraceContent.OFF: "no texts are kept",
}


@dataclass(frozen=True)
class Redaction:
    """The server's own setting. A session's config may ask for less to be kept, never for more."""

    content: TraceContent = TraceContent.FULL

    def of(self, config: MiproConfig) -> TraceContent:
        """What is kept of the session's texts."""
        return max(self.content, config.mipro.trace_content, key=TraceContent.strictness)

    def warnings(self, config: MiproConfig) -> list[str]:
        """What the session loses by it."""
        content = self.of(config)
        if content is TraceContent.FULL:
            return []
        return [_WARNING.format(what=_KEPT[content], content=str(content))]

    def trace(self, trace: Trace, session: Session, config: MiproConfig) -> Trace:
        """The trace as it may be kept. Nothing in it is an example to learn from."""
        content = self.of(config)
        if content is TraceContent.FULL:
            return trace
        kept = _Kept(content, session).of_trace(dict(trace))
        return trace.model_copy(update=kept)

    def reward(self, reward: Reward, session: Session, config: MiproConfig) -> Reward:
        """The reward as it may be kept."""
        content = self.of(config)
        if content is TraceContent.FULL:
            return reward
        return reward.model_copy(update=_Kept(content, session).of_reward(dict(reward)))

    def digest(self, session: Session, text: str) -> str:
        """What stands in for the text in the session, where digests are kept."""
        return _Kept(TraceContent.HASHES, session).digest(text)

    def rows(
        self, part: Part, rows: Sequence[JsonObject], session: Session
    ) -> Sequence[JsonObject]:
        """Rows of an export as they may be kept. What its config asks for was done where it ran."""
        kept = _Kept(self.content, session)
        match part:
            case Part.TRACE:
                return [
                    {**row, **kept.of_trace(row), "frame": _without_words(row.get("frame"))}
                    for row in rows
                ]
            case Part.REWARD:
                return [{**row, **kept.of_reward(row)} for row in rows]
            case Part.ROLLOUT:
                return [{**row, "example_trace_id": None} for row in rows]
            case _:
                return rows


class _Kept:
    """What is kept of rows of one session, of which not all is."""

    def __init__(self, content: TraceContent, session: Session) -> None:
        self._digests = content is TraceContent.HASHES
        self._key = session.digest_key.encode()

    def of_trace(self, values: Mapping[str, Any]) -> JsonObject:
        """The fields of a trace that change."""
        said = values.get("output") or values.get("response")
        keeps_answer = self._digests and said is not None
        return {
            "messages": tuple(map(self._message, _objects(values.get("messages"))))
            if self._digests
            else (),
            "response": {"digest": self.digest(said)} if keeps_answer else None,
            # Of these examples are made.
            "input": "",
            "output": "",
            "error": NOT_KEPT if values.get("error") else "",
            "unapplied_reason": NOT_KEPT if values.get("unapplied_reason") else "",
        }

    def of_reward(self, values: Mapping[str, Any]) -> JsonObject:
        """The fields of a reward that change. What it was is told by digests in its metadata."""
        told = values.get("metadata")
        metadata = dict(told) if isinstance(told, Mapping) else {}
        artifact = values.get("artifact")
        if self._digests and values.get("feedback"):
            metadata.setdefault("feedback", values["feedback"])
        return {
            "feedback": None,
            "expected": None,
            "artifact": None
            if artifact is None or not self._digests
            else {"digest": self.digest(artifact)},
            "metadata": self._metadata(metadata) or None,
        }

    def _metadata(self, metadata: JsonObject) -> JsonObject:
        if not self._digests:
            return {name: metadata[name] for name in EXAMPLE_KEYS if name in metadata}
        return {
            name: value if name in EXAMPLE_KEYS or _is_number(value) else self.digest(value)
            for name, value in metadata.items()
        }

    def _message(self, message: JsonObject) -> JsonObject:
        """Its role, and a digest of all the rest."""
        rest = {name: value for name, value in message.items() if name != "role"}
        text = rest["content"] if rest.keys() == {"content"} else rest
        role = message.get("role")
        return {"role": role if role in _ROLES else "other", "content": self.digest(text)}

    def digest(self, said: Any) -> str:
        """A keyed digest of what was said."""
        text = said if isinstance(said, str) else _canonical(said)
        digest = hmac.new(self._key, text.encode("utf-8", "replace"), hashlib.sha256)
        return f"{DIGEST_PREFIX}{digest.hexdigest()[:DIGEST_CHARACTERS]}"


def _canonical(value: Any) -> str:
    """JSON with its keys in order, where it can be."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        return json_text(value)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


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
