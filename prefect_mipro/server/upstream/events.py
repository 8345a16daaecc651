"""A stream of server-sent events on its way to the caller, and the completion that it tells of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from prefect_mipro.models.base import JsonObject
from prefect_mipro.server.upstream.completions import Completion, failure_of, parsed
from prefect_mipro.server.upstream.quoted_keys import without
from prefect_mipro.server.upstream.tool_calls import ToolCalls

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
_LONGEST_EMPTY_LINE = max(map(len, _EMPTY_LINES))
# The groups are atomic, or "\r\n" would be two ends of a line.
_EVENT = re.compile(rb".+?(?:(?>\r\n|\n|\r)(?>\r\n|\n|\r)|\Z)", re.DOTALL)


class Events:
    """A stream's events, passed on whole and read as they come: one answer of role assistant.

    Half an event is kept back until its end is there: a reader can make nothing of it, and would
    stumble over it if the end never came. With `usage_hidden` an event that tells the usage and
    nothing else is read and not passed on. Of `keys` that an event quotes nobody learns.

    Text and tool calls are those of all deltas of the first choice. However long the stream is,
    what is kept of it is bounded: from an event of more than 4 MB on, it is passed on unread.
    """

    def __init__(self, *, usage_hidden: bool = False, keys: Iterable[bytes] = ()) -> None:
        self.has_content = False
        self._usage_hidden = usage_hidden
        self._keys = tuple(keys)
        self._rest = bytearray()
        self._unread = False
        self._done = False
        self._answered = False
        self._text: list[str] = []
        self._characters = 0
        self._tool_calls = ToolCalls()
        self._finish_reason: str | None = None
        self._told: JsonObject = {}
        self._failure: Completion | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take the next piece, cut anywhere. Returns the events that are complete, as they came."""
        if self._unread:
            return without(self._keys, chunk)
        rest = self._rest
        if not rest and chunk.endswith(_EMPTY_LINES[0]):  # as nearly always
            return self._read(chunk)
        # What has waited holds no end, except the beginning of one.
        searched = max(0, len(rest) - _LONGEST_EMPTY_LINE + 1)
        rest += chunk
        end = _end_of_events(rest, searched)
        passed_on = self._read(bytes(rest[:end]))
        del rest[:end]
        if len(rest) > LONGEST_EVENT_BYTES:
            self._unread = True
            return passed_on + self.end()
        return passed_on

    def end(self) -> bytes:
        """Take the end of the stream. Returns what had come without an end of its own."""
        rest = bytes(self._rest)
        self._rest.clear()
        return without(self._keys, rest) if self._unread else self._read(rest)

    @property
    def is_complete(self) -> bool:
        """Whether the stream has said that it is over: with its answer, or with an error."""
        return self._done or self._unread or bool(self._finish_reason or self._failure)

    @property
    def completion(self) -> Completion:
        """What has come so far, put together."""
        if self._failure is not None:
            return self._failure
        message: JsonObject = {"role": "assistant", "content": "".join(self._text)}
        if tool_calls := self._tool_calls.whole:
            # As in an answer that comes whole.
            message |= {"content": message["content"] or None, "tool_calls": tool_calls}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        whole = {**self._told, "choices": [choice]}
        if not self.is_complete:
            return Completion(whole, error="the stream broke off")
        empty = not (self._answered or self._unread)
        return Completion(whole, error="a stream without choices" if empty else "")

    def _read(self, events: bytes) -> bytes:
        """Read them. Returns those to pass on."""
        events = without(self._keys, events)
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
        if "tool_calls" in delta:
            self._tool_calls.feed(delta["tool_calls"])
        self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _end_of_events(arrived: bytearray, searched: int) -> int:
    """Where the last event that is complete ends; 0 when none does behind `searched`."""
    found = [(arrived.rfind(ending, searched), ending) for ending in _EMPTY_LINES]
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
