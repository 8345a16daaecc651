"""Server-sent events on their way to the caller, and the completion that they add up to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from prefect_mipro.models.base import JsonObject
from prefect_mipro.server.upstream.completions import Completion, failure_of, parsed
from prefect_mipro.server.upstream.interface import StreamedUsage
from prefect_mipro.server.upstream.quoted_keys import without
from prefect_mipro.server.upstream.stream_usage import tells_only_usage, without_usage
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
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The last of them is also the end of "\r\n\r\n".
_EMPTY_LINES = (b"\n\n", b"\r\r", b"\n\r\n")
_LONGEST_EMPTY_LINE = max(map(len, _EMPTY_LINES))
# The group is atomic, or "\r\n" would be two ends of a line.
_END = re.compile(rb"(?>\r\n|\n|\r){2,}")
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


def is_stream(beginning: bytes) -> bool | None:
    """Whether a body that begins like this is a stream of events; None if more must be seen."""
    text = beginning.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if text.startswith(_FIELDS):
        return True
    return None if any(field.startswith(text) for field in _FIELDS) else False


def says_something(beginning: bytes) -> bool:
    """Whether a stream that begins like this holds more than its end."""
    text = beginning.removeprefix(_BYTE_ORDER_MARK).strip()
    return bool(text) and not (_DATA + _DONE).startswith(text.replace(b" ", b""))


class Events:
    """A stream's events, passed on whole and read as they come: one answer of role assistant.

    Half an event is kept back until its end is there: a reader can make nothing of it, and would
    stumble over it if the end never came. With hidden `usage` events are passed on as they would be
    if nobody had asked for it. Any of the `keys` that an event quotes is replaced.

    Text and tool calls are those of all deltas of the first choice. However long the stream is,
    what is kept of it is bounded: an event of more than 4 MB is passed on unread.
    """

    def __init__(self, usage: StreamedUsage | None = None, *, keys: Iterable[bytes] = ()) -> None:
        self.has_content = False
        self._usage = usage or StreamedUsage()
        self._keys = tuple(keys)
        self._longest_cut = max([_LONGEST_EMPTY_LINE, *map(len, self._keys)]) - 1
        self._rest = bytearray()
        self._skipping = False
        self._unread = False
        self._done = False
        self._answered = False
        self._text: list[str] = []
        self._characters = 0
        self._tool_calls = ToolCalls()
        self._finish_reason: str | None = None
        self._told: JsonObject = {}
        self._previous: JsonObject = {}
        self._failure: Completion | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take the next piece, cut anywhere. Returns the events that are complete."""
        rest = self._rest
        if not rest and chunk.endswith(_EMPTY_LINES[0]):  # as nearly always
            return self._read(chunk)
        # What has waited holds no end, except the beginning of one.
        searched = max(0, len(rest) - _LONGEST_EMPTY_LINE + 1)
        rest += chunk
        if self._skipping:
            return self._skip(searched)
        end = _end_of_events(rest, searched)
        passed_on = self._read(bytes(rest[:end]))
        del rest[:end]
        if len(rest) > LONGEST_EVENT_BYTES:
            self._unread = self._skipping = True
            return passed_on + self._skip(len(rest))
        return passed_on

    def end(self) -> bytes:
        """Take the end of the stream. Returns the incomplete event left over."""
        rest = bytes(self._rest)
        self._rest.clear()
        passed_on = without(self._keys, rest) if self._skipping else self._read(rest)
        self._usage.ended = self._usage.ended or (self.is_complete and self._failure is None)
        return passed_on

    @property
    def is_complete(self) -> bool:
        """Whether the stream has said that it is over: with its answer, or with an error."""
        return self._done or self._unread or bool(self._finish_reason or self._failure)

    @property
    def completion(self) -> Completion:
        """The completion put together from the events so far."""
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

    def _skip(self, searched: int) -> bytes:
        """Pass on an event that is too large to be read."""
        rest = self._rest
        end = _END.search(rest, searched)
        if end is not None:
            self._skipping = False
            passed_on = without(self._keys, bytes(rest[: end.end()]))
            following = bytes(rest[end.end() :])
            rest.clear()
            return passed_on + (self.feed(following) if following else b"")
        # The end of the event, or a key, may have begun.
        passed_on = without(self._keys, bytes(rest))
        self._rest = bytearray(passed_on[-self._longest_cut :])
        return passed_on[: -self._longest_cut]

    def _read(self, events: bytes) -> bytes:
        """Read complete events. Returns the bytes to pass on."""
        events = without(self._keys, events)
        passed_on, start = [], 0
        for end in _END.finditer(events):
            passed_on.append(self._read_event(events[start : end.end()]))
            start = end.end()
        if start < len(events):
            passed_on.append(self._read_event(events[start:]))
        return b"".join(passed_on)

    def _read_event(self, event: bytes) -> bytes:
        data = _data(event)
        if not data:
            return event
        if data.lstrip().startswith(_DONE):
            self._done = self._usage.ended = True
            return event
        value = _object(data)
        if value is None:
            return event
        if value.get("error"):
            self._failure = self._failure or Completion(value, failure_of(value))
            return event
        self._read_value(value)
        if "usage" in value:
            event = self._read_usage(event, data, value)
        self._previous = value
        return event

    def _read_usage(self, event: bytes, data: bytes, value: JsonObject) -> bytes:
        usage = self._usage
        if value["usage"]:
            usage.told = True
        else:
            usage.announced = usage.announced or not usage.told
        if not usage.hidden:
            return event
        if tells_only_usage(value, self._previous):
            return b"".join(line for line in event.splitlines(True) if line.startswith(b":"))
        return _with_data(event, without_usage(data, value))

    def _read_value(self, event: JsonObject) -> None:
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
    """The end of the last complete event; 0 when none ends behind `searched`."""
    found = [(arrived.rfind(ending, searched), ending) for ending in _EMPTY_LINES]
    return max(at + len(ending) if at >= 0 else 0 for at, ending in found)


def _data(event: bytes) -> bytes:
    """The event's data, joined from all its lines."""
    lines = event.removeprefix(_BYTE_ORDER_MARK).splitlines()
    return b"\n".join(line[len(_DATA) :] for line in lines if line.startswith(_DATA))


def _with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data in the place of its first data line."""
    lines = [_DATA + line for line in data.split(b"\n")]
    written: list[bytes] = []
    for line in event.splitlines(keepends=True):
        if line.removeprefix(_BYTE_ORDER_MARK).startswith(_DATA):
            before = line[: line.index(_DATA)]
            after = line[len(line.rstrip(b"\r\n")) :]
            written += [before, *(new + after for new in lines)]
            lines = []
        else:
            written.append(line)
    return b"".join(written)


def _object(data: bytes) -> JsonObject | None:
    """The data as a JSON object, if it is one."""
    try:
        value = parsed(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
