"""Streams are asked for their usage, unless their upstream refuses to be asked."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.events import Events
from prefect_mipro.server.upstream.stream_usage import UsageRequests, leaves_usage_open
from tests.server.services.conftest import Answer, Model

STREAM: ChatBody = {"stream": True, "messages": [{"role": "user", "content": "hi"}]}
OK = Answer(b"", content_type="text/event-stream")


@pytest.mark.parametrize(
    ("body", "is_open"),
    [
        ({"stream": True}, True),
        ({"stream": True, "stream_options": None}, True),
        ({"stream": True, "stream_options": {}}, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, True),
        ({"stream": True, "stream_options": {"include_usage": True}}, False),
        ({"stream": True, "stream_options": "yes"}, False),
        ({"stream": False}, False),
        ({"stream": "yes"}, False),
        ({}, False),
    ],
)
def test_a_stream_without_the_question_leaves_it_open(body: ChatBody, is_open: bool) -> None:
    assert leaves_usage_open(body) is is_open


async def status_of(asked: UsageRequests, upstream: Model, **more: Any) -> int:
    async with asked.chat(upstream, {**STREAM, **more}) as reply:
        return reply.status


def refuses_options(body: ChatBody) -> Answer:
    return Answer(b"{}", status=422) if "stream_options" in body else OK


async def test_the_question_is_added_to_other_options() -> None:
    model = Model(lambda _: OK)
    options = {"include_obfuscation": False}
    assert await status_of(UsageRequests(), model, stream_options=options) == 200
    assert model.bodies[0]["stream_options"] == {**options, "include_usage": True}
    assert options == {"include_obfuscation": False}


async def test_who_refuses_it_is_asked_without_it_and_never_again_with_it() -> None:
    model, asked = Model(refuses_options), UsageRequests()
    assert [await status_of(asked, model), await status_of(asked, model)] == [200, 200]
    assert ["stream_options" in body for body in model.bodies] == [True, False, False]


async def test_who_refuses_the_call_itself_is_asked_again_the_next_time() -> None:
    model, asked = Model(lambda _: Answer(b"{}", status=400)), UsageRequests()
    assert await status_of(asked, model) == 400
    assert await status_of(asked, model) == 400
    assert ["stream_options" in body for body in model.bodies] == [True, False] * 2


async def test_other_refusals_are_final() -> None:
    model = Model(lambda _: Answer(b"{}", status=401))
    assert await status_of(UsageRequests(), model) == 401
    assert len(model.bodies) == 1


async def test_refusals_are_remembered_by_model() -> None:
    model, asked = Model(refuses_options), UsageRequests()
    await status_of(asked, model)
    await status_of(asked, model, model="other")
    assert ["stream_options" in body for body in model.bodies] == [True, False, True, False]


async def test_one_upstreams_refusal_is_not_anothers() -> None:
    unwilling, willing, asked = Model(refuses_options), Model(lambda _: OK), UsageRequests()
    await status_of(asked, unwilling)
    await status_of(asked, willing)
    assert "stream_options" in willing.bodies[0]


TEXT = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5}}\n\n'
RIDING = TEXT.replace(b"}\n", b', "usage": {"prompt_tokens": 5}}\n')
NULL = TEXT.replace(b"}\n", b', "usage": null}\n')
DONE = b"data: [DONE]\n\n"


def server(*, asked: bytes, unasked: bytes) -> Model:
    """A server whose streams depend on the question."""
    return Model(
        lambda body: Answer(
            (asked if "stream_options" in body else unasked) + DONE,
            content_type="text/event-stream",
        )
    )


async def streamed(asked: UsageRequests, model: Model, *, pieces: int | None = None) -> bytes:
    """What the caller gets of a stream, or of its first pieces."""
    passed_on = b""
    async with asked.chat(model, STREAM) as reply:
        events = Events(reply.usage)
        arriving = [piece async for piece in reply.chunks()]
        for piece in arriving[:pieces]:
            passed_on += events.feed(piece)
        if pieces is None:
            passed_on += events.end()
    return passed_on


@pytest.mark.parametrize(
    ("with_usage", "without", "asks"),
    [
        # The server shows that it does so on request.
        (NULL + USAGE, TEXT, [True] * 4),
        # It does not; the next stream shows it.
        (TEXT + USAGE, TEXT, [True, False, True, True]),
        (RIDING, TEXT, [True, False, True, True]),
        # It never tells any.
        (TEXT, TEXT, [True] * 4),
    ],
)
async def test_callers_get_what_they_would_get_without_the_question(
    with_usage: bytes, without: bytes, asks: list[bool]
) -> None:
    model, asked = server(asked=with_usage, unasked=without), UsageRequests()
    assert [await streamed(asked, model) for _ in asks] == [without + DONE] * 4
    assert ["stream_options" in body for body in model.bodies] == asks


@pytest.mark.parametrize("always", [TEXT + USAGE, RIDING])
async def test_usage_that_comes_unasked_is_passed_on_once_that_is_known(always: bytes) -> None:
    model, asked = server(asked=always, unasked=always), UsageRequests()
    first, *others = [await streamed(asked, model) for _ in range(4)]
    assert first == TEXT + DONE
    assert others == [always + DONE] * 3
    assert ["stream_options" in body for body in model.bodies] == [True, False, False, False]


async def test_a_stream_that_was_left_early_shows_nothing() -> None:
    model, asked = server(asked=RIDING, unasked=TEXT), UsageRequests()
    await streamed(asked, model)
    await streamed(asked, model, pieces=1)
    await streamed(asked, model)
    await streamed(asked, model)
    assert ["stream_options" in body for body in model.bodies] == [True, False, False, True]


async def test_streams_beside_the_one_that_is_to_show_it_go_on_asking() -> None:
    model, asked = server(asked=RIDING, unasked=TEXT), UsageRequests()
    await streamed(asked, model)
    async with asked.chat(model, STREAM):
        assert await streamed(asked, model) == TEXT + DONE
    assert ["stream_options" in body for body in model.bodies] == [True, False, True]


async def test_a_server_that_stops_telling_usage_unasked_is_asked_again() -> None:
    asked = UsageRequests()
    model = server(asked=RIDING, unasked=RIDING)
    await streamed(asked, model)
    await streamed(asked, model)
    model.answer = server(asked=RIDING, unasked=TEXT).answer
    assert [await streamed(asked, model) for _ in range(2)] == [TEXT + DONE] * 2
    assert ["stream_options" in body for body in model.bodies] == [True, False, False, True]
