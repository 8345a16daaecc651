"""Streams on their way: whole events, unchanged, and what they tell of the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_mipro.server.upstream import events
from prefect_mipro.server.upstream.events import Events, is_stream
from prefect_mipro.server.upstream.interface import StreamedUsage

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


def hiding() -> Events:
    """A stream whose caller did not ask for the usage."""
    return Events(StreamedUsage(hidden=True))


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_hidden_usage_is_read_and_not_passed_on(line_end: bytes) -> None:
    body = (event("a") + USAGE + b": ping\n\n" + DONE).replace(b"\n", line_end)
    stream = hiding()
    assert b"".join(passed_on(stream, body)) == body.replace(USAGE.replace(b"\n", line_end), b"")
    assert stream.completion.usage.prompt_tokens == 5


def test_hidden_usage_at_the_very_end_takes_nothing_else_along() -> None:
    pieces = passed_on(hiding(), event("a") + USAGE, DONE.rstrip())
    assert pieces == [event("a"), b"", DONE.rstrip()]
    assert passed_on(hiding(), USAGE.rstrip()) == [b"", b""]


CHUNK = '"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"'
TOLD = '"usage": {"prompt_tokens": 5, "details": {"a": "}"}}'
TEXT = '"choices": [{"index": 0, "delta": {"content": "a", "usage": null}}]'


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        # Events that say nothing else.
        (f"data: {{{CHUNK}, {TOLD}}}", ""),
        (f'data: {{{CHUNK}, "choices": null, {TOLD}}}', ""),
        (f'data: {{{CHUNK}, "choices": [], {TOLD}, "service_tier": "x", "extra": null}}', ""),
        (f"id: 7\nevent: message\ndata: {{{TOLD}}}", ""),
        (f": still here\ndata: {{{TOLD}}}", ": still here\n"),
        # Other things in the same event.
        (
            f'data: {{"choices": [], {TOLD}, "timings": {{"ms": 5.0}}}}',
            'data: {"choices": [], "timings": {"ms": 5.0}}',
        ),
        (f'data:{{{TOLD},"citations":["u"]}}', 'data:{"citations":["u"]}'),
        (f"data: {{{CHUNK}, {TEXT}, {TOLD}}}", f"data: {{{CHUNK}, {TEXT}}}"),
        (f"data: {{{TOLD} , {TEXT}}}", f"data: {{{TEXT}}}"),
        # What servers add to the other events once they are asked.
        (f'data: {{{CHUNK}, {TEXT}, "usage": null}}', f"data: {{{CHUNK}, {TEXT}}}"),
        (f'data: {{{TEXT},"usage" :null,"x":NaN}}', f'data: {{{TEXT},"x":NaN}}'),
        ('data: {"choices": [], "usage": null}', 'data: {"choices": []}'),
        # Data over several lines, and names in other spellings.
        (
            f'event: x\ndata: {{{TEXT},\ndata: "usage": null,\ndata:  "x": 1}}\nid: 7',
            f'event: x\ndata: {{{TEXT},\ndata:  "x": 1}}\nid: 7',
        ),
        ('data: {"x": 1, "\\u0075sage": null}', 'data:{"x":1}'),
        ('data: {"usage": null, "x": 1, "usage": {"a": 1}}', 'data:{"x":1}'),
        # No usage of the stream.
        ('data: {"x": "usage", "y": {"usage": null}}', None),
        (f'data: {{"x_groq": {{{TOLD}}}, "choices": []}}', None),
        ('data: {"error": {"message": "no"}, "usage": null}', None),
        ('data: "usage"', None),
        (": usage", None),
    ],
)
def test_usage_that_the_caller_did_not_ask_for_is_taken_out_and_nothing_else(
    sent: str, expected: str | None
) -> None:
    expected = sent if expected is None else expected
    ends = "\n\n" if expected and not expected.endswith("\n") else ""
    body = event("a") + f"{sent}\n\n".encode() + DONE
    kept = event("a") + (expected + ends).encode() + DONE
    assert b"".join(passed_on(hiding(), body)) == kept
    assert b"".join(passed_on(Events(), body)) == body
    line_end = b"\r\n"
    crossed = b"".join(passed_on(hiding(), body.replace(b"\n", line_end)))
    assert crossed == kept.replace(b"\n", line_end)


def test_fields_that_were_there_before_are_nothing_new() -> None:
    text = event("a").replace(b'"model"', b'"citations": ["u"], "model"')
    told = USAGE.replace(b'"choices"', b'"citations": ["u"], "choices"')
    assert passed_on(hiding(), text + told) == [text, b""]


@pytest.mark.parametrize(
    ("body", "told", "announced", "ended"),
    [
        (event("a") + DONE, False, False, True),
        (event("a"), False, False, False),
        (event("a", finish_reason="stop"), False, False, True),
        (event("a") + USAGE, True, False, False),
        (event("a") + USAGE + DONE, True, False, True),
        (event("a").replace(b"}\n", b', "usage": null}\n') + USAGE, True, True, False),
        (USAGE + event("a").replace(b"}\n", b', "usage": null}\n'), True, False, False),
        (event("a") + b'data: {"error": "no"}\n\n', False, False, False),
    ],
)
def test_what_a_stream_tells_of_its_usage(
    body: bytes, told: bool, announced: bool, ended: bool
) -> None:
    usage = StreamedUsage()
    passed_on(Events(usage), body)
    assert usage == StreamedUsage(told=told, announced=announced, ended=ended)


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b"data: {", True),
        (b": comment", True),
        (b"\xef\xbb\xbf\r\n\nevent:x", True),
        (b"retry: 5", True),
        (b'\n\n  \n{"id"', False),
        (b"<!doctype html>", False),
        (b"dataset: x", False),
        (b" \n dat", None),
        (b"", None),
    ],
)
def test_a_stream_is_known_by_its_first_bytes(beginning: bytes, expected: bool | None) -> None:
    assert is_stream(beginning) is expected


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


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [49_999, 50_000])
def test_a_larger_one_passes_unread_and_the_next_ones_are_read(line_end: bytes, size: int) -> None:
    large = event("x" * (events.LONGEST_EVENT_BYTES + 100_000), finish_reason="stop")
    body = (event("a") + large + event("b") + USAGE).replace(b"\n", line_end)
    stream = hiding()
    pieces = passed_on(stream, *(body[at : at + size] for at in range(0, len(body), size)))
    assert b"".join(pieces) == body.removesuffix(USAGE.replace(b"\n", line_end))
    assert stream.is_complete
    assert stream.completion.error == ""
    assert stream.completion.response is not None
    assert stream.completion.response["choices"][0]["message"]["content"] == "ab"


def test_a_stream_of_one_event_that_is_too_large_is_no_broken_one() -> None:
    stream = Events()
    pieces = passed_on(stream, b"data: ", b"x" * events.LONGEST_EVENT_BYTES, b"yz")
    assert b"".join(pieces) == b"data: " + b"x" * events.LONGEST_EVENT_BYTES + b"yz"
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


def test_a_key_in_an_event_that_is_too_large_is_taken_out_however_it_is_cut() -> None:
    filling = b"x" * events.LONGEST_EVENT_BYTES
    stream = Events(keys=[b"sk-provider"])
    pieces = passed_on(stream, b"data: " + filling, b"y sk-prov", b"ider z\n\n" + DONE)
    assert b"".join(pieces) == b"data: " + filling + b"y *** z\n\n" + DONE
