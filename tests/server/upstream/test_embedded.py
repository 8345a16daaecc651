"""The real small model, in this process."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from prefect_mipro.errors import InputInvalid, ModelMissing, Overloaded, UpstreamUnreachable
from prefect_mipro.server.upstream.embedded import EmbeddedUpstream, Limits, slots_for


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


async def test_closing_ends_the_call_under_way_and_the_one_that_waits(
    model: EmbeddedUpstream,
) -> None:
    endless = body_of("Count to a million.", max_tokens=3500, ignore_eos=True, stream=True)

    async with model.chat(endless) as reply:
        chunks = reply.chunks()
        await anext(chunks)
        waiting = asyncio.create_task(ask(model))
        await asyncio.sleep(0)
        await model.close()
        with pytest.raises(UpstreamUnreachable):
            await anext(chunks)
    with pytest.raises(UpstreamUnreachable):
        await waiting


async def test_a_call_after_closing_loads_the_model_again(model: EmbeddedUpstream) -> None:
    await ask(model)
    await model.close()
    assert (await ask(model))["choices"]


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


async def test_a_body_that_makes_no_sense_is_a_bad_request_in_openais_shape(
    model: EmbeddedUpstream,
) -> None:
    async with model.chat({"messages": ["hello"], "temperature": "hot"}) as reply:
        assert reply.status == 400
        error = json.loads(await reply.read())["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


async def test_chance_repeats_with_its_seed(model: EmbeddedUpstream) -> None:
    hot = {"temperature": 2.0, "max_tokens": 24}
    texts = [
        (await ask(model, seed=seed, **hot))["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_calls_on_several_slots_answer_as_one_alone(model: EmbeddedUpstream) -> None:
    numbers = range(1, 9)
    alone = [(await ask(model, text=f"What is {n}?"))["choices"] for n in numbers]
    several = EmbeddedUpstream(limits=Limits(slots=4))
    together = await asyncio.gather(*(ask(several, text=f"What is {n}?") for n in numbers))
    await several.close()
    assert [answer["choices"] for answer in together] == alone


async def test_computing_leaves_the_event_loop_free(model: EmbeddedUpstream) -> None:
    await ask(model)
    call = asyncio.create_task(ask(model, text="Tell a story.", max_tokens=40))
    longest_seconds = 0.0
    while not call.done():
        started = time.perf_counter()
        await asyncio.sleep(0)
        longest_seconds = max(longest_seconds, time.perf_counter() - started)
    assert longest_seconds < 0.5


async def test_signals_still_reach_python(model: EmbeddedUpstream) -> None:
    came = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        came.clear()
        loop.add_signal_handler(number, came.set)
        await ask(model)
        await model.close()
        signal.raise_signal(number)
        async with asyncio.timeout(5):
            await came.wait()
        loop.remove_signal_handler(number)


async def test_the_runtime_writes_nothing_to_the_terminal(
    model: EmbeddedUpstream, capfd: pytest.CaptureFixture[str]
) -> None:
    await ask(model)
    await model.close()
    assert capfd.readouterr() == ("", "")


async def test_closing_ends_the_calls_under_way_and_the_next_call_loads_again(
    model: EmbeddedUpstream,
) -> None:
    async with model.chat(body_of(max_tokens=3500, ignore_eos=True, stream=True)) as reply:
        await anext(reply.chunks())
        async with asyncio.timeout(15):
            await model.close()
    assert (await ask(model))["choices"]


async def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF")
    upstream = EmbeddedUpstream(model_path=path)
    with pytest.raises(ModelMissing, match=r"cannot load .*odd\.gguf"):
        async with upstream.chat(body_of()):
            pass
    await upstream.close()


@pytest.mark.parametrize(("cores", "slots"), [(1, 1), (2, 1), (4, 1), (8, 2), (64, 4)])
def test_few_cores_compute_one_call_at_a_time(cores: int, slots: int) -> None:
    assert slots_for(cores) == slots
