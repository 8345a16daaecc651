"""Streams are asked for their usage, unless their upstream refuses to be asked."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.stream_usage import UsageAsked, leaves_usage_open
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


async def status_of(asked: UsageAsked, model: Model, **more: Any) -> int:
    async with asked.chat(model, {**STREAM, **more}) as reply:
        return reply.status


def refuses_options(body: ChatBody) -> Answer:
    return Answer(b"{}", status=422) if "stream_options" in body else OK


async def test_the_question_is_added_to_other_options() -> None:
    model = Model(lambda _: OK)
    options = {"include_obfuscation": False}
    assert await status_of(UsageAsked(), model, stream_options=options) == 200
    assert model.bodies[0]["stream_options"] == {**options, "include_usage": True}
    assert options == {"include_obfuscation": False}


async def test_who_refuses_it_is_asked_without_it_and_never_again_with_it() -> None:
    model, asked = Model(refuses_options), UsageAsked()
    assert [await status_of(asked, model), await status_of(asked, model)] == [200, 200]
    assert ["stream_options" in body for body in model.bodies] == [True, False, False]


async def test_who_refuses_the_call_itself_is_asked_again_the_next_time() -> None:
    model, asked = Model(lambda _: Answer(b"{}", status=400)), UsageAsked()
    assert await status_of(asked, model) == 400
    assert await status_of(asked, model) == 400
    assert ["stream_options" in body for body in model.bodies] == [True, False] * 2


async def test_other_refusals_are_final() -> None:
    model = Model(lambda _: Answer(b"{}", status=401))
    assert await status_of(UsageAsked(), model) == 401
    assert len(model.bodies) == 1


async def test_one_upstreams_refusal_is_not_anothers() -> None:
    unwilling, willing, asked = Model(refuses_options), Model(lambda _: OK), UsageAsked()
    await status_of(asked, unwilling)
    await status_of(asked, willing)
    assert "stream_options" in willing.bodies[0]
