"""What an upstream's answer says, read from the bytes that passed through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from prefect_mipro.errors import UpstreamFailed
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import Usage

EVENT_STREAM = "text/event-stream"

# What is kept of a stream: of its text so much, and of an event that is under way.
LONGEST_TEXT = 1_000_000
LONGEST_EVENT_BYTES = 1_000_000

# Parts of a delta that a reader sees, besides its role.
_CONTENT = ("content", "tool_calls", "refusal", "reasoning_content", "reasoning", "function_call")


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

    @property
    def model(self) -> str | None:
        """The model that the answer names."""
        named = (self.response or {}).get("model")
        return named if isinstance(named, str) else None


def require_completion(completion: Completion) -> None:
    """Raise UpstreamFailed unless the body of a successful answer is a chat completion."""
    if completion.error:
        raise UpstreamFailed(f"the model's server answered nonsense: {completion.error}")


def read(body: bytes, *, content_type: str) -> Completion:
    """The completion that a whole body holds, a stream's put together from its events."""
    if content_type.startswith(EVENT_STREAM):
        events = Events()
        events.feed(body)
        return events.completion
    try:
        answer = _parsed(body)
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


class Events:
    """A stream's events, read as they come: one answer of role assistant.

    Its text is that of all deltas of the first choice. Tool calls stay in the events; a trace
    needs no more than the text. However long the stream is, what is kept of it is bounded.
    """

    def __init__(self) -> None:
        self.has_content = False
        self._rest = b""
        self._skipping = False
        self._text: list[str] = []
        self._characters = 0
        self._finish_reason: str | None = None
        self._told: JsonObject = {}
        self._failure: Completion | None = None

    def feed(self, chunk: bytes) -> None:
        """The next piece, cut anywhere."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif line.startswith(b"data:"):
                self._read_event(line[5:])
        self._skipping = self._skipping or len(rest) > LONGEST_EVENT_BYTES
        self._rest = b"" if self._skipping else rest

    @property
    def completion(self) -> Completion:
        """What has come so far, put together."""
        if self._rest.startswith(b"data:"):
            self.feed(b"\n")
        if self._failure is not None:
            return self._failure
        message = {"role": "assistant", "content": "".join(self._text)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        whole = {**self._told, "choices": [choice]}
        return Completion(whole, error="" if self._finish_reason else "the stream broke off")

    def _read_event(self, text: bytes) -> None:
        try:
            event = _parsed(text)
        except ValueError:  # also the closing [DONE]
            return
        if not isinstance(event, dict):
            return
        if isinstance(event.get("error"), dict | str):
            error = f"an error: {str(event['error'])[:200]}"
            self._failure = self._failure or Completion(event, error)
            return
        for key in ("id", "model", "usage"):
            if event.get(key):
                self._told[key] = event[key]
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._read_choice(choice)

    def _read_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self.has_content = self.has_content or any(delta.get(key) for key in _CONTENT)
            text = delta.get("content")
            if isinstance(text, str) and self._characters < LONGEST_TEXT:
                self._text.append(text)
                self._characters += len(text)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)  # takes NaN, which some servers send


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
