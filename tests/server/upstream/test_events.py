"""Streams on their way: whole events, unchanged, and what they tell of the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_mipro.server.upstream import events
from prefect_mipro.server.upstream.events import Events

DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'


def event(text: str = "", **choice: Any) -> bytes:
    """One event of the first choice."""
    choice = {"index": 0, "delta": {"content": text}, **choice}
    return b"data: " + json.dumps({"model": "m", "choices": [choice]}).encode() + b"\n\n"


def passed_on(stream: Events, *chunks: bytes) -> list[bytes]:
    """What each piece lets through, and then the end."""
    return [*map(stream.feed, chunks), stream.end()]


def test_whole_events_pass_at_once() -> None:
    assert passed_on(Events(), event("a") + event("b"), DONE) == [
        event("a") + event("b"),
        DONE,
        b"",
    ]


def test_half_an_event_waits_for_its_end() -> None:
    whole = event("a")
    assert passed_on(Events(), whole[:9], whole[9:-1], whole[-1:]) == [b"", b"", whole, b""]
    assert passed_on(Events(), whole + whole[:9]) == [whole, whole[:9]]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_may_end_in_any_way_and_be_cut_anywhere(line_end: bytes, size: int) -> None:
    body = (event("a") + event("b", finish_reason="stop") + DONE).replace(b"\n", line_end)
    stream = Events()
    pieces = passed_on(stream, *(body[at : at + size] for at in range(0, len(body), size)))
    assert b"".join(pieces) == body
    assert stream.is_complete
    assert stream.completion.response is not None
    assert stream.completion.response["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_hidden_usage_is_read_and_not_passed_on(line_end: bytes) -> None:
    body = (event("a") + USAGE + b": ping\n\n" + DONE).replace(b"\n", line_end)
    stream = Events(usage_hidden=True)
    assert b"".join(passed_on(stream, body)) == body.replace(USAGE.replace(b"\n", line_end), b"")
    assert stream.completion.usage.prompt_tokens == 5


def test_hidden_usage_at_the_very_end_takes_nothing_else_along() -> None:
    pieces = passed_on(Events(usage_hidden=True), event("a") + USAGE, DONE.rstrip())
    assert pieces == [event("a"), b"", DONE.rstrip()]
    assert passed_on(Events(usage_hidden=True), USAGE.rstrip()) == [b"", b""]


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"choices": [], "usage": null}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {}}], "usage": {"prompt_tokens": 1}}\n\n',
        b'data: {"usage": {"prompt_tokens": 1}}\n\n',
        event('"choices": [], "usage": {}'),
    ],
)
def test_no_other_event_is_hidden(line: bytes) -> None:
    assert passed_on(Events(usage_hidden=True), line) == [line, b""]


def test_usage_passes_where_it_is_not_hidden() -> None:
    assert passed_on(Events(), USAGE) == [USAGE, b""]


@pytest.mark.parametrize(
    ("delta", "has_content"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"content": "a"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
        ({"refusal": "No."}, True),
        ({"audio": {"data": "AA=="}}, True),
        ({"reasoning_content": "hm"}, True),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_the_first_content_is_that_of_any_choice(
    delta: dict[str, Any], has_content: bool, index: int
) -> None:
    stream = Events()
    stream.feed(event(delta=delta, index=index))
    assert stream.has_content is has_content


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        (b"", False),
        (event("a"), False),
        (event("a", finish_reason="length"), True),
        (event("a") + DONE, True),
        (event("a") + b"data: [DONE]", True),
        (b'data: {"error": {"message": "no"}}\n\n', True),
    ],
)
def test_a_stream_is_complete_when_it_says_so(body: bytes, complete: bool) -> None:
    stream = Events()
    passed_on(stream, body)
    assert stream.is_complete is complete


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (event("a", finish_reason="stop"), ""),
        (event("a") + DONE, ""),
        (event("a"), "the stream broke off"),
        (DONE, "a stream without choices"),
    ],
)
def test_a_stream_is_an_answer_when_it_has_said_something_and_that_it_is_over(
    body: bytes, error: str
) -> None:
    stream = Events()
    passed_on(stream, body)
    assert stream.completion.error == error


def test_an_error_among_the_events_is_the_answer() -> None:
    stream = Events()
    passed_on(stream, event("a") + b'data: {"error": {"message": "too hot"}}\n\n' + DONE)
    assert "too hot" in stream.completion.error


def test_a_large_event_is_read() -> None:
    large = event("a" * (events.LONGEST_EVENT_BYTES - 1_000), finish_reason="stop")
    stream = Events()
    pieces = passed_on(stream, *(large[at : at + 65_536] for at in range(0, len(large), 65_536)))
    assert b"".join(pieces) == large
    assert stream.completion.error == ""


def test_a_larger_one_passes_unread_and_with_all_that_follows() -> None:
    size = events.LONGEST_EVENT_BYTES
    stream = Events(usage_hidden=True)
    assert passed_on(stream, b"data: ", b"x" * size, b"yz", USAGE) == [
        b"",
        b"data: " + b"x" * size,
        b"yz",
        USAGE,
        b"",
    ]
    assert stream.is_complete
    assert stream.completion.error == ""


def test_a_large_event_in_small_pieces_is_read_once() -> None:
    # To search again what has waited, at each piece, would take minutes.
    whole = event("x" * (events.LONGEST_EVENT_BYTES - 1_000))
    stream = Events()
    pieces = passed_on(stream, *(whole[at : at + 200] for at in range(0, len(whole), 200)))
    assert b"".join(pieces) == whole
    assert stream.has_content


def test_tool_calls_are_put_together() -> None:
    call = {"id": "call_1", "type": "function"}
    begin = {**call, "index": 0, "function": {"name": "weather"}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    stream = Events()
    passed_on(
        stream,
        event(delta={"content": None, "tool_calls": [begin]}),
        event(delta={"tool_calls": [more]}),
        event(index=1, delta={"tool_calls": [{**begin, "id": "of another choice"}]}),
        event(delta={}, finish_reason="tool_calls"),
    )
    assert stream.completion.response is not None
    assert stream.completion.response["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**call, "function": {"name": "weather", "arguments": "{}"}}],
    }


@pytest.mark.parametrize("size", [3, 1_000])
def test_a_key_that_an_event_quotes_is_taken_out_of_it(size: int) -> None:
    said = b'data: {"error": {"message": "no such key: Bearer sk-provider"}}\n\n'
    stream = Events(keys=[b"sk-provider"])
    pieces = passed_on(stream, *(said[at : at + size] for at in range(0, len(said), size)))
    assert b"".join(pieces) == said.replace(b"sk-provider", b"***")
    assert "sk-provider" not in str(stream.completion)
