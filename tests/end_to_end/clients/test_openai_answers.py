"""What the official client sends and gets is what it would send and get without us."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.clients.conftest import MESSAGES, Place
from tests.end_to_end.clients.samples import ANSWER, REQUEST
from tests.server.scripted_upstream import COMPLETION


def exactly(raw: bytes) -> Any:
    """The JSON value, which tells 1.0 from 1."""
    return json.loads(raw, parse_float=lambda text: ("not whole", float(text)))


def test_each_value_of_a_request_arrives_as_it_was_sent(
    client: openai.OpenAI, direct: openai.OpenAI, place: Place
) -> None:
    for caller in (direct, client):
        caller.chat.completions.create(**REQUEST)
    sent, arrived = (exactly(received.raw) for received in place.upstream.received)
    assert arrived == sent
    assert list(arrived) == list(sent)


def test_what_a_caller_leaves_open_is_the_sessions(plain: httpx.Client, place: Place) -> None:
    plain.post("/chat/completions", json={"messages": MESSAGES})
    assert place.upstream.received[0].body == {
        "messages": MESSAGES,
        "model": "the-policy-model",
    }


@pytest.mark.parametrize("field", ["model", "temperature", "max_tokens", "stream_options"])
def test_null_is_an_answer_too(plain: httpx.Client, place: Place, field: str) -> None:
    plain.post("/chat/completions", json={"messages": MESSAGES, field: None})
    assert place.upstream.received[0].body[field] is None


def test_none_of_the_callers_headers_reach_the_model(client: openai.OpenAI, place: Place) -> None:
    client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        extra_headers={"x-mine": "1", "cookie": "a=b", "x-mipro-example-id": "7"},
    )
    headers = place.upstream.received[0].headers
    assert not {"x-mine", "cookie", "x-mipro-example-id", "authorization"} & headers.keys()


def test_the_answers_bytes_come_back(plain: httpx.Client, place: Place) -> None:
    place.answer(ANSWER, content_type="application/json; charset=utf-8")
    answer = plain.post("/chat/completions", json={"messages": MESSAGES})
    assert answer.content == ANSWER
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_an_answer_without_a_type_is_json(plain: httpx.Client, place: Place) -> None:
    place.answer(ANSWER, content_type="")
    answer = plain.post("/chat/completions", json={"messages": MESSAGES})
    assert (answer.content, answer.headers["content-type"]) == (ANSWER, "application/json")


def test_an_answer_that_comes_compressed_against_our_wish_is_unpacked(
    plain: httpx.Client, place: Place
) -> None:
    place.answer(gzip.compress(ANSWER), headers={"content-encoding": "gzip"})
    answer = plain.post("/chat/completions", json={"messages": MESSAGES})
    assert answer.content == ANSWER
    assert "content-encoding" not in answer.headers


def test_large_images_arrive(plain: httpx.Client, place: Place) -> None:
    url = "data:image/png;base64," + "iVBORw0K" * 400_000
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    plain.post("/chat/completions", json={"messages": [*MESSAGES, image]})
    assert place.upstream.received[0].body["messages"] == [*MESSAGES, image]


def test_a_parsed_answer_has_all_its_fields(
    client: openai.OpenAI, direct: openai.OpenAI, place: Place
) -> None:
    place.answer(ANSWER)
    place.answer(ANSWER)
    answer = client.chat.completions.create(**REQUEST)
    assert answer == direct.chat.completions.create(**REQUEST)
    first, second = answer.choices
    assert answer.system_fingerprint == "fp_abc"
    assert answer.service_tier == "flex"
    assert answer.model_extra == {"x_provider": {"latency": 1.0, "huge": 2**70, "tiny": 1e-320}}
    assert first.logprobs is not None
    assert first.message.content == "café \U0001f327"
    assert first.message.model_extra == {"x_thinking": "hm"}
    assert first.message.audio is not None
    assert [call.id for call in first.message.tool_calls or ()] == ["call_3", "call_4"]
    assert second.message.refusal == "No."
    assert answer.usage is not None
    assert answer.usage.total_tokens == 29


async def test_the_async_client_gets_the_same(place: Place) -> None:
    place.answer(ANSWER)
    async with openai.AsyncOpenAI(base_url=place.url, api_key="none", max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(**REQUEST)
    assert raw.content == ANSWER
    assert raw.headers["x-mipro-candidate-id"]
    assert raw.parse().choices[1].message.refusal == "No."


def test_a_schema_is_parsed_into_its_class(client: openai.OpenAI, place: Place) -> None:
    from pydantic import BaseModel

    class Label(BaseModel):
        label: str

    message = {"role": "assistant", "content": '{"label": "card"}'}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    place.answer(json.dumps({**COMPLETION, "choices": [choice]}).encode())
    answer = client.chat.completions.parse(model="m", messages=MESSAGES, response_format=Label)
    assert answer.choices[0].message.parsed == Label(label="card")
    schema = place.upstream.received[0].body["response_format"]["json_schema"]
    assert schema["schema"]["properties"] == {"label": {"title": "Label", "type": "string"}}


@pytest.mark.parametrize(
    "header", ["x-request-id", "x-ratelimit-remaining-tokens", "openai-processing-ms"]
)
def test_the_models_own_headers_come_through(
    client: openai.OpenAI, place: Place, header: str
) -> None:
    place.answer(ANSWER, headers={header: "123", "set-cookie": "a=b", "x-internal": "1"})
    raw = client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    assert raw.headers[header] == "123"
    assert not {"set-cookie", "x-internal"} & set(raw.headers)


def test_usage_is_counted_from_the_answer(client: openai.OpenAI, place: Place) -> None:
    place.answer(ANSWER)
    client.chat.completions.create(**REQUEST)
    candidate = place.candidate()
    assert (candidate["prompt_tokens"], candidate["completion_tokens"]) == (21, 8)
