"""LangChain's ChatOpenAI against a rollout URL, unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import NotFoundError
from pydantic import BaseModel

from tests.end_to_end.clients.conftest import Place, only_candidate
from tests.end_to_end.clients.samples import ANSWER, DONE, EVENTS, USAGE_EVENT, event
from tests.server.scripted_upstream import COMPLETION, answers

PROMPT = [("system", "You classify banking queries."), ("human", "Query: where is my card?")]


# Servers that tell the usage on request say so from the first event on.
ON_REQUEST = event('{"role":"assistant","content":""}', more='"usage":null,')


@tool
def weather(place: str) -> str:
    """The weather in a place."""
    return f"rain in {place}"


class Label(BaseModel):
    """The label of a query."""

    label: str


def chat_model(url: str) -> ChatOpenAI:
    # As every program writes it; the class's static types know other names for its fields.
    options: dict[str, Any] = {
        "base_url": url,
        "api_key": "none",
        "model": "gpt-4.1-nano",
        "max_retries": 0,
        "include_response_headers": True,
    }
    return ChatOpenAI(**options)


@pytest.fixture
def model(place: Place) -> ChatOpenAI:
    return chat_model(place.url)


def test_invoke(model: ChatOpenAI, place: Place) -> None:
    answer = model.invoke(PROMPT)
    assert isinstance(answer, AIMessage)
    assert answer.content == "hello"
    assert answer.response_metadata["headers"]["x-mipro-candidate-id"]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 9
    sent = place.upstream.received[0].body
    assert sent["messages"] == [
        {"role": "system", "content": "You classify banking queries."},
        {"role": "user", "content": "Query: where is my card?"},
    ]


async def test_ainvoke(model: ChatOpenAI) -> None:
    assert (await model.ainvoke(PROMPT)).content == "hello"


def test_stream(model: ChatOpenAI, place: Place) -> None:
    place.upstream.gate.set()
    events = [each for each in EVENTS if b'"index":1,"delta"' not in each]
    place.script(place.upstream.stream(b"".join([ON_REQUEST, *events, USAGE_EVENT, DONE])))
    whole = AIMessageChunk(content="")
    for piece in model.stream(PROMPT):
        assert isinstance(piece, AIMessageChunk)
        whole = whole + piece
    assert whole.content == "café ok"
    assert [call["args"] for call in whole.tool_calls] == [{"place": "Bern"}, {}]


@pytest.mark.parametrize("asks", [False, True])
async def test_astream_with_its_usage(model: ChatOpenAI, place: Place, asks: bool) -> None:
    place.upstream.gate.set()
    place.script(place.upstream.stream(b"".join([ON_REQUEST, *EVENTS, USAGE_EVENT, DONE])))
    told = [
        piece.usage_metadata["total_tokens"]
        async for piece in model.astream(PROMPT, stream_usage=asks)
        if piece.usage_metadata
    ]
    assert told == ([29] if asks else [])
    status = await place.session.status_async()
    assert only_candidate(status)["prompt_tokens"] == 21


def test_bind_tools(model: ChatOpenAI, place: Place) -> None:
    place.answer(ANSWER)
    answer = model.bind_tools([weather]).invoke(PROMPT)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("weather", {"place": "Bern"}),
        ("weather", {}),
    ]
    assert place.upstream.received[0].body["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_with_structured_output(model: ChatOpenAI, place: Place, method: Any) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": '{"label": "card"}'}
    if method == "function_calling":
        function = {"name": "Label", "arguments": message.pop("content")}
        message |= {"content": None, "tool_calls": [_call(function)]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    place.answer(json.dumps({**COMPLETION, "choices": [choice]}).encode())
    structured = model.with_structured_output(Label, method=method)
    assert structured.invoke(PROMPT) == Label(label="card")


def test_each_rollout_by_a_header(place: Place) -> None:
    model = chat_model(place.session_url)
    answer = model.invoke(PROMPT, extra_headers={"x-mipro-rollout-id": "r7"})
    assert answer.response_metadata["headers"]["x-mipro-rollout-id"] == "r7"
    receipt = place.session.update_reward(reward_info={"score": 1}, rollout_id="r7")
    assert receipt["attached"] is True


def test_errors_are_the_official_clients(model: ChatOpenAI, place: Place) -> None:
    place.script(answers(404, b"no such model"))
    with pytest.raises(NotFoundError, match="no such model"):
        model.invoke(PROMPT)


def _call(function: dict[str, Any]) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": function}
