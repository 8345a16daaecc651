"""What an upstream's answer says, read from the bytes that passed through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefect_mipro.errors import UpstreamFailed
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import Usage

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Completion:
    """A chat completion as far as it could be read. `error` says why it could not."""

    response: JsonObject | None = None
    error: str = ""

    @property
    def usage(self) -> Usage:
        """The tokens the upstream counted; zero where it did not say."""
        told = (self.response or {}).get("usage")
        if not isinstance(told, dict):
            return Usage()
        return Usage(
            prompt_tokens=_count(told.get("prompt_tokens")),
            completion_tokens=_count(told.get("completion_tokens")),
        )


def require_completion(body: bytes) -> None:
    """Raise UpstreamFailed unless the body of a successful answer is a chat completion."""
    completion = read(body, content_type="application/json")
    if completion.error:
        raise UpstreamFailed(f"the model's server answered nonsense: {completion.error}")


def read(body: bytes, *, content_type: str) -> Completion:
    """The completion that a body holds, a stream's put together from its events."""
    if content_type.startswith(EVENT_STREAM):
        return _read_events(body)
    try:
        answer = json.loads(body)
    except ValueError:
        return Completion(error=f"not JSON but {body[:80]!r}")
    if not isinstance(answer, dict):
        return Completion(error=f"JSON, but not an object: {body[:80]!r}")
    if isinstance(answer.get("error"), dict | str):
        return Completion(response=answer, error=f"an error: {str(answer['error'])[:200]}")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return Completion(response=answer, error="an object without choices")
    return Completion(response=answer)


def _read_events(body: bytes) -> Completion:
    """One answer of role assistant with the text of all deltas of the first choice.

    Tool calls stay in the events; a trace needs no more than the text.
    """
    text: list[str] = []
    finish_reason: str | None = None
    whole: JsonObject = {}
    for event in _events(body):
        if isinstance(event.get("error"), dict | str):
            return Completion(response=event, error=f"an error: {str(event['error'])[:200]}")
        whole |= {key: event[key] for key in ("id", "model", "usage") if event.get(key)}
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                text.append((choice.get("delta") or {}).get("content") or "")
                finish_reason = choice.get("finish_reason") or finish_reason
    message = {"role": "assistant", "content": "".join(text)}
    whole["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return Completion(response=whole, error="" if finish_reason else "the stream broke off")


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if not line.startswith(b"data:"):
            continue
        try:
            event = json.loads(line.removeprefix(b"data:"))
        except ValueError:  # also the closing [DONE]
            continue
        if isinstance(event, dict):
            yield event


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
