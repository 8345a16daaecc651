"""What a second model answers for, and what stays the first one's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from prefect_mipro.errors import KeyMissing, UpstreamTimedOut, UpstreamUnreachable
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.fallback import Fallback
from prefect_mipro.server.upstream.limits import Limits
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.patience import BackOff, Timeouts
from tests.server.scripted_upstream import (
    ScriptedUpstream,
    answers,
    break_off,
    drop,
    event,
    hang,
)

BODY: ChatBody = {"model": "first", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
ONCE = BackOff(repeats=1, first_wait_seconds=0.0)


@pytest.fixture
def first_server() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def second_server() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
async def first(first_server: ScriptedUpstream) -> AsyncIterator[OpenAIUpstream]:
    upstream = OpenAIUpstream(
        first_server.url,
        api_key=SecretStr("sk-first"),
        back_off=ONCE,
        timeouts=Timeouts(first_byte_seconds=0.3),
        limits=Limits(max_concurrent_calls=1, max_waiting_calls=0),
    )
    yield upstream
    await upstream.close()


@pytest.fixture
async def second(second_server: ScriptedUpstream) -> AsyncIterator[OpenAIUpstream]:
    upstream = OpenAIUpstream(second_server.url, api_key=SecretStr("sk-second"), back_off=ONCE)
    yield upstream
    await upstream.close()


@pytest.fixture
def fallback(first: OpenAIUpstream, second: OpenAIUpstream) -> Fallback:
    return Fallback(first, second, model="second")


async def ask(upstream: Fallback, key: str | None = None) -> tuple[int, str | None]:
    api_key = SecretStr(key) if key else None
    async with upstream.chat(BODY, api_key=api_key) as reply:
        await reply.read()
        return reply.status, reply.model


async def test_while_the_first_model_answers_the_second_is_not_asked(
    fallback: Fallback, second_server: ScriptedUpstream
) -> None:
    assert await ask(fallback) == (200, None)
    assert second_server.received == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_after_a_refusal_the_second_model_answers_with_its_own_key(
    fallback: Fallback, first_server: ScriptedUpstream, second_server: ScriptedUpstream, status: int
) -> None:
    first_server.script.extend([answers(status)] * 2)
    assert await ask(fallback) == (200, "second")
    (received,) = second_server.received
    assert received.body == {**BODY, "model": "second"}
    assert received.headers["authorization"] == "Bearer sk-second"


async def test_the_first_models_repeats_come_before_the_second_model(
    fallback: Fallback, first_server: ScriptedUpstream
) -> None:
    first_server.script.append(answers(503))
    assert await ask(fallback) == (200, None)
    assert len(first_server.received) == 2


async def test_after_a_dropped_connection_the_second_model_answers(
    fallback: Fallback, first_server: ScriptedUpstream
) -> None:
    first_server.script.extend([drop] * 2)
    assert await ask(fallback) == (200, "second")
    assert fallback.counts.fallbacks == 1


async def test_after_a_silent_first_model_the_second_one_answers(
    fallback: Fallback, first_server: ScriptedUpstream
) -> None:
    first_server.script.append(hang)
    assert await ask(fallback) == (200, "second")


async def test_where_the_first_model_has_no_place_left_the_second_one_answers(
    fallback: Fallback, first_server: ScriptedUpstream
) -> None:
    first_server.script.append(first_server.stream(event("a"), event("b")))
    async with fallback.chat(BODY) as busy:
        assert await ask(fallback) == (200, "second")
        first_server.gate.set()
        await busy.read()


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_what_the_caller_did_wrong_is_not_asked_again(
    fallback: Fallback,
    first_server: ScriptedUpstream,
    second_server: ScriptedUpstream,
    status: int,
) -> None:
    first_server.script.append(answers(status))
    assert await ask(fallback) == (status, None)
    assert second_server.received == []


async def test_once_an_answer_has_begun_there_is_no_second_one(
    fallback: Fallback, first_server: ScriptedUpstream, second_server: ScriptedUpstream
) -> None:
    first_server.script.append(break_off)
    with pytest.raises(UpstreamUnreachable, match="broke off"):
        await ask(fallback)
    assert second_server.received == []


async def test_the_second_models_failure_is_the_calls_failure(
    fallback: Fallback, first_server: ScriptedUpstream, second_server: ScriptedUpstream
) -> None:
    first_server.script.extend([answers(500)])
    second_server.script.extend([answers(503)] * 2)
    assert await ask(fallback) == (503, "second")


async def test_a_callers_own_key_goes_to_no_second_provider(
    fallback: Fallback, first_server: ScriptedUpstream, second_server: ScriptedUpstream
) -> None:
    first_server.script.extend([answers(500), hang])
    assert await ask(fallback, key="sk-caller") == (500, None)
    with pytest.raises(UpstreamTimedOut):
        await ask(fallback, key="sk-caller")
    assert second_server.received == []


async def test_a_callers_own_key_serves_another_model_of_the_same_provider(
    first: OpenAIUpstream, first_server: ScriptedUpstream
) -> None:
    first_server.script.extend([answers(500)])
    assert await ask(Fallback(first, first, model="smaller"), key="sk-caller") == (200, "smaller")
    keys = [received.headers["authorization"] for received in first_server.received]
    assert keys == ["Bearer sk-caller"] * 2


async def test_a_missing_key_is_not_a_failure_of_the_model(
    second: OpenAIUpstream, second_server: ScriptedUpstream
) -> None:
    keyed = OpenAIUpstream("http://keyed.invalid/v1", caller_key_required=True)
    with pytest.raises(KeyMissing):
        await ask(Fallback(keyed, second, model="second"))
    assert second_server.received == []


async def test_leaving_the_call_ends_the_one_that_is_under_way(
    fallback: Fallback, first_server: ScriptedUpstream, second_server: ScriptedUpstream
) -> None:
    first_server.script.append(answers(500))
    second_server.script.append(second_server.stream(event("a"), then=hang))
    async with fallback.chat(BODY) as reply:
        assert await anext(reply.chunks()) == event("a")
    assert await asyncio.to_thread(second_server.gone.wait, 10)
