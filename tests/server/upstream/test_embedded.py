"""The real small model, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from prefect_mipro.errors import InputInvalid, Overloaded
from prefect_mipro.server.upstream.embedded import EmbeddedUpstream, Limits


@pytest.fixture
async def model() -> AsyncIterator[EmbeddedUpstream]:
    upstream = EmbeddedUpstream(limits=Limits(slots=1, most_waiting=2))
    yield upstream
    await upstream.close()


def body_of(text: str = "Say hello.", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": 6, "temperature": 0, **more}


async def ask(model: EmbeddedUpstream, **body: Any) -> dict[str, Any]:
    async with model.chat(body_of(**body)) as reply:
        assert reply.status == 200
        answer: dict[str, Any] = json.loads(await reply.read())
        return answer


async def test_it_answers_in_openais_shape_with_usage_and_no_path(model: EmbeddedUpstream) -> None:
    answer = await ask(model)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "smollm2-135m-instruct"
    assert answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6


async def test_a_stream_says_the_same_in_events(model: EmbeddedUpstream) -> None:
    whole = await ask(model)
    async with model.chat(body_of(stream=True)) as reply:
        assert reply.content_type.startswith("text/event-stream")
        events = b"".join([chunk async for chunk in reply.chunks()])
    assert events.rstrip().endswith(b"data: [DONE]")
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        for line in events.splitlines()
        if line.startswith(b"data: {")
    )
    assert text == whole["choices"][0]["message"]["content"]


async def test_a_shared_prefix_is_read_once(model: EmbeddedUpstream) -> None:
    shots = [
        turn
        for i in range(8)
        for turn in (
            {"role": "user", "content": f"Number {i} of a long shared beginning."},
            {"role": "assistant", "content": "noted"},
        )
    ]
    cached = []
    for text in ("one", "two", "three"):
        messages = [*shots, {"role": "user", "content": text}]
        answer = await ask(model, messages=messages)
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert min(cached[1:]) > 100


async def test_sampling_parameters_are_obeyed(model: EmbeddedUpstream) -> None:
    assert (await ask(model, max_tokens=2))["usage"]["completion_tokens"] == 2
    plain = (await ask(model))["choices"][0]["message"]["content"]
    stop = plain[3]
    stopped = (await ask(model, stop=[stop]))["choices"][0]["message"]["content"]
    assert stopped == plain[: plain.index(stop)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_hangs_up_frees_the_only_slot(
    model: EmbeddedUpstream, stream: bool
) -> None:
    await ask(model)
    endless = body_of("Count to a million.", max_tokens=3500, ignore_eos=True, stream=stream)
    begun = asyncio.Event()

    async def call() -> None:
        if not stream:
            asyncio.get_running_loop().call_later(0.5, begun.set)
        async with model.chat(endless) as reply:
            async for _ in reply.chunks():
                begun.set()

    task = asyncio.create_task(call())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # All 3,500 tokens take the slot for half a minute or more.
    async with asyncio.timeout(15):
        await ask(model)


async def test_one_call_too_many_is_told_to_come_back(model: EmbeddedUpstream) -> None:
    answers = await asyncio.gather(
        *(ask(model, text=f"Say {i}.") for i in range(8)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 5
    assert all(error.retry_after_seconds for error in refused)
    assert (await ask(model))["choices"]


async def test_a_prompt_longer_than_the_context_is_a_bad_request(model: EmbeddedUpstream) -> None:
    async with model.chat(body_of("word " * 5000)) as reply:
        assert reply.status == 400
        assert "context size" in json.loads(await reply.read())["error"]["message"]


async def test_an_image_is_refused_in_words(model: EmbeddedUpstream) -> None:
    body = body_of(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(InputInvalid, match="reads text only") as refused:
        async with model.chat(body):
            pass
    assert refused.value.status == 400
