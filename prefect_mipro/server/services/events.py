"""A stream of server-sent events on its way to the caller, and the completion that it tells of."""

from __future__ import annotations

import re
from typing import Any

from prefect_mipro.models.base import JsonObject
from prefect_mipro.server.services.completions import Completion, failure_of, parsed

# What is kept of a stream: of its text so much, and of an event that is under way.
LONGEST_TEXT = 1_000_000
LONGEST_EVENT_BYTES = 4_000_000

# Parts of a delta that a reader sees, besides its role.
_CONTENT = (
    "content",
    "tool_calls",
    "refusal",
    "reasoning_content",
    "reasoning",
    "function_call",
    "audio",
)
_DATA = b"data:"
_DONE = b"[DONE]"
_EMPTY_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
# The groups are atomic, or "\r\n" would be two ends of a line.
_EVENT = re.compile(rb".+?(?:(?>\r\n|\n|\r)(?>\r\n|\n|\r)|\Z)", re.DOTALL)


class Events:
    """A stream's events, passed on whole and read as they come: one answer of role assistant.

    Half an event is kept back until its end is there: a reader can make nothing of it, and would
    stumble over it if the end never came. With `usage_hidden` an event that tells the usage and
    nothing else is read and not passed on.

    The text is that of all deltas of the first choice. Tool calls stay in the events; a trace needs
    no more than the text. However long the stream is, what is kept of it is bounded: from an event
    of more than 4 MB on, it is passed on unread.
    """

    def __init__(self, *, usage_hidden: bool = False) -> None:
        self.has_content = False
        self._usage_hidden = usage_hidden
        self._rest = b""
        self._unread = False
        self._done = False
        self._answered = False
        self._text: list[str] = []
        self._characters = 0
        self._finish_reason: str | None = None
        self._told: JsonObject = {}
        self._failure: Completion | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take the next piece, cut anywhere. Returns the events that are complete, as they came."""
        if self._unread:
            return chunk
        arrived = self._rest + chunk if self._rest else chunk
        end = _end_of_events(arrived)
        self._rest = arrived[end:]
        passed_on = self._read(arrived[:end])
        if len(self._rest) > LONGEST_EVENT_BYTES:
            self._unread = True
            return passed_on + self.end()
        return passed_on

    def end(self) -> bytes:
        """Take the end of the stream. Returns what had come without an end of its own."""
        rest, self._rest = self._rest, b""
        return rest if self._unread else self._read(rest)

    @property
    def is_complete(self) -> bool:
        """Whether the stream has said that it is over: with its answer, or with an error."""
        return self._done or self._unread or bool(self._finish_reason or self._failure)

    @property
    def completion(self) -> Completion:
        """What has come so far, put together."""
        if self._failure is not None:
            return self._failure
        message = {"role": "assistant", "content": "".join(self._text)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        whole = {**self._told, "choices": [choice]}
        if not self.is_complete:
            return Completion(whole, error="the stream broke off")
        empty = not (self._answered or self._unread)
        return Completion(whole, error="a stream without choices" if empty else "")

    def _read(self, events: bytes) -> bytes:
        """Read them. Returns those to pass on."""
        tells_usage_only = False
        for line in events.splitlines():
            if line.startswith(_DATA):
                event = _value(line)
                if event is not None:
                    self._read_event(event)
                    tells_usage_only = tells_usage_only or _tells_usage_only(event)
                elif line[len(_DATA) :].strip() == _DONE:
                    self._done = True
        return _without_usage(events) if tells_usage_only and self._usage_hidden else events

    def _read_event(self, event: JsonObject) -> None:
        if event.get("error"):
            self._failure = self._failure or Completion(event, failure_of(event))
            return
        for key in ("id", "model", "usage"):
            if event.get(key):
                self._told[key] = event[key]
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._read_choice(choice)

    def _read_choice(self, choice: dict[str, Any]) -> None:
        told = choice.get("delta")
        delta = told if isinstance(told, dict) else {}
        self.has_content = self.has_content or any(delta.get(key) for key in _CONTENT)
        if choice.get("index", 0) != 0:
            return
        self._answered = True
        text = delta.get("content")
        if isinstance(text, str) and self._characters < LONGEST_TEXT:
            self._text.append(text)
            self._characters += len(text)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _end_of_events(arrived: bytes) -> int:
    """Where the last event that is complete ends; 0 when none is."""
    if arrived.endswith(b"\n\n"):
        return len(arrived)
    found = [(arrived.rfind(ending), ending) for ending in _EMPTY_LINES]
    return max(at + len(ending) if at >= 0 else 0 for at, ending in found)


def _without_usage(events: bytes) -> bytes:
    return b"".join(
        event[0]
        for event in _EVENT.finditer(events)
        if not any(_tells_usage_only(_value(line)) for line in event[0].splitlines())
    )


def _value(line: bytes) -> JsonObject | None:
    """The object that a line of data holds, if it holds one."""
    if not line.startswith(_DATA):
        return None
    try:
        value = parsed(line[len(_DATA) :])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _tells_usage_only(event: JsonObject | None) -> bool:
    return event is not None and event.get("choices") == [] and isinstance(event.get("usage"), dict)
