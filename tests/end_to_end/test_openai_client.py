"""The official OpenAI client against a rollout URL, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from prefect_mipro.client.session import MiproOnlineSession
from tests.end_to_end.conftest import CONFIG, KEY, Setting, messages_of
from tests.fake_upstream import Scripted


@pytest.fixture(scope="module")
def session(setting: Setting) -> MiproOnlineSession:
    return MiproOnlineSession.create(
        config_body=CONFIG, backend_url=setting.url, api_key=KEY, session_id="openai-client"
    )


@pytest.fixture
def client(session: MiproOnlineSession) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{session.online_url}/rollout-1", api_key="none", max_retries=0
    ) as client:
        yield client


def ask(client: openai.OpenAI, query: str, **more: Any) -> Any:
    messages: Any = messages_of(query)
    return client.chat.completions.create(model="gpt-4.1-nano", messages=messages, **more)


def test_a_plain_call_answers_and_names_its_candidate(client: openai.OpenAI) -> None:
    messages: Any = messages_of("hello #a")
    raw = client.chat.completions.with_raw_response.create(model="m", messages=messages)
    assert raw.headers["x-mipro-candidate-id"].startswith("baseline_")
    assert raw.headers["x-mipro-rollout-id"] == "rollout-1"
    answer = raw.parse()
    assert answer.choices[0].message.content in ("a", "no idea")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 14
    assert answer.system_fingerprint == "fp_1"


def test_a_streamed_call_arrives_in_pieces(client: openai.OpenAI) -> None:
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, "two words #no idea", stream=True)
    ]
    assert "".join(pieces) == "no idea"
    assert len([piece for piece in pieces if piece]) == 2


async def test_the_async_client_works_the_same(session: MiproOnlineSession) -> None:
    messages: Any = messages_of("hello #a")
    async with openai.AsyncOpenAI(
        base_url=f"{session.online_url}/rollout-2", api_key="none", max_retries=0
    ) as client:
        answer = await client.chat.completions.create(model="m", messages=messages)
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        streamed = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert answer.choices[0].message.content == streamed


def test_a_call_without_a_rollout_id_gets_one(session: MiproOnlineSession) -> None:
    messages: Any = messages_of("hello #a")
    with openai.OpenAI(base_url=session.online_url, api_key="none") as client:
        raw = client.chat.completions.with_raw_response.create(model="m", messages=messages)
    rollout_id = raw.headers["x-mipro-rollout-id"]
    assert (
        session.update_reward(reward_info={"score": 1}, rollout_id=rollout_id)["attached"] is True
    )


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (500, openai.InternalServerError),
    ],
)
def test_the_upstreams_errors_raise_the_clients_own_classes(
    client: openai.OpenAI, setting: Setting, status: int, error: type[openai.APIStatusError]
) -> None:
    body = b'{"error": {"message": "told so", "type": "t", "code": "c", "param": null}}'
    setting.upstream.script.extend([Scripted(status=status, body=body)] * 3)
    with pytest.raises(error, match="told so") as caught:
        ask(client, "hello #a")
    assert caught.value.response.headers["x-mipro-candidate-id"]
    setting.upstream.script.clear()


def test_an_upstream_that_is_busy_once_is_asked_again(
    client: openai.OpenAI, setting: Setting
) -> None:
    setting.upstream.script.append(Scripted(status=429, headers={"Retry-After": "0"}))
    assert ask(client, "hello #a").choices


def test_an_upstream_that_answers_nonsense_is_a_bad_gateway(
    client: openai.OpenAI, setting: Setting
) -> None:
    setting.upstream.script.append(Scripted(body=b"<html>", content_type="text/html"))
    with pytest.raises(openai.InternalServerError, match="nonsense") as caught:
        ask(client, "hello #a")
    assert caught.value.status_code == 502


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": "hi"}, {"messages": []}, {"messages": [1]}, {"messages": None}],
)
def test_a_malformed_chat_body_is_a_bad_request(client: openai.OpenAI, body: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.post("/chat/completions", body=body, cast_to=object)
