"""What the official client streams is what it would stream without us, as soon as it comes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.clients.conftest import MESSAGES, Place
from tests.end_to_end.clients.samples import ANSWER, DONE, EVENTS, REQUEST, USAGE_EVENT, event
from tests.server.scripted_upstream import Connection, answers, hang

WHOLE = b"".join([*EVENTS, DONE])
ENDING = event("{}", finish='"stop"') + DONE
ASKS_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
CHAT: dict[str, Any] = {"model": "m", "messages": MESSAGES}


def own_model(place: Place) -> dict[str, Any]:
    """A request for a model of which no other test has shown how it tells its usage."""
    return {**CHAT, "model": place.session.session_id}


def streamed(place: Place, *pieces: bytes) -> None:
    """Script a stream of these pieces, which waits for nothing."""
    place.upstream.gate.set()
    place.script(place.upstream.stream(*pieces))


def test_the_events_bytes_come_back(plain: httpx.Client, place: Place) -> None:
    streamed(place, WHOLE)
    answer = plain.post("/chat/completions", json={**CHAT, "stream": True})
    assert answer.content == WHOLE
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-mipro-candidate-id"]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_they_do_however_they_are_cut(plain: httpx.Client, place: Place, size: int) -> None:
    streamed(place, *(WHOLE[start : start + size] for start in range(0, len(WHOLE), size)))
    assert plain.post("/chat/completions", json={**CHAT, "stream": True}).content == WHOLE


def test_other_ends_of_lines_come_back_too(plain: httpx.Client, place: Place) -> None:
    body = WHOLE.replace(b"\n", b"\r\n")
    streamed(place, body[:-1], body[-1:])
    assert plain.post("/chat/completions", json={**CHAT, "stream": True}).content == body


def test_the_client_reads_the_same_pieces(
    client: openai.OpenAI, direct: openai.OpenAI, place: Place
) -> None:
    streamed(place, WHOLE)
    streamed(place, WHOLE)
    pieces = list(client.chat.completions.create(**REQUEST, stream=True))
    assert pieces == list(direct.chat.completions.create(**REQUEST, stream=True))
    calls = [
        call
        for piece in pieces
        for choice in piece.choices
        for call in choice.delta.tool_calls or ()
    ]
    assert [call.index for call in calls] == [0, 0, 1]
    assert {choice.index for piece in pieces for choice in piece.choices} == {0, 1}
    assert pieces[2].choices[0].delta.model_extra == {"x_thinking": 1.0}
    assert pieces[0].system_fingerprint == "fp_1"


def test_the_clients_own_collector_understands_them(client: openai.OpenAI, place: Place) -> None:
    streamed(place, WHOLE)
    request = {name: value for name, value in REQUEST.items() if name != "response_format"}
    with client.chat.completions.stream(**request) as stream:
        answer = stream.get_final_completion()
    first, second = answer.choices
    assert first.message.content == "café ok"
    arguments = [call.function.arguments for call in first.message.tool_calls or ()]
    assert arguments == ['{"place":"Bern"}', "{}"]
    assert second.message.refusal == "."


def test_the_trace_holds_the_calls_that_the_clients_own_collector_finds(
    client: openai.OpenAI, place: Place
) -> None:
    streamed(place, WHOLE)
    request = {name: value for name, value in REQUEST.items() if name != "response_format"}
    with client.chat.completions.stream(**request) as stream:
        found = stream.get_final_completion().choices[0].message
    lines = map(json.loads, place.exported().splitlines())
    (trace,) = (line for line in lines if line["part"] == "trace")
    message = trace["response"]["choices"][0]["message"]
    assert message["content"] == found.content
    assert [(call["id"], call["function"]) for call in message["tool_calls"]] == [
        (call.id, {"name": call.function.name, "arguments": call.function.arguments})
        for call in found.tool_calls or ()
    ]


class TestAtOnce:
    """No event waits for the next one."""

    def test_for_the_client(self, client: openai.OpenAI, place: Place) -> None:
        place.script(
            place.upstream.stream(event('{"content":"a"}'), event('{"content":"b"}'), ENDING)
        )
        stream = client.chat.completions.create(**CHAT, stream=True)
        assert stream.response.headers["x-mipro-candidate-id"]
        assert next(stream).choices[0].delta.content == "a"
        assert not place.upstream.gate.is_set()
        place.upstream.gate.set()
        assert next(stream).choices[0].delta.content == "b"
        assert len(list(stream)) == 1

    async def test_for_the_async_client(self, place: Place) -> None:
        place.script(place.upstream.stream(event('{"content":"a"}'), ENDING))
        async with openai.AsyncOpenAI(base_url=place.url, api_key="none") as client:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            first = await anext(stream)
            assert not place.upstream.gate.is_set()
            place.upstream.gate.set()
            rest = [piece async for piece in stream]
        assert first.choices[0].delta.content == "a"
        assert [piece.choices[0].finish_reason for piece in rest] == ["stop"]

    def test_the_headers_come_with_the_first_sign_of_life(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        def begin(connection: Connection) -> None:
            connection.begin_stream()
            connection.wfile.write(b": still thinking\n\n")
            assert place.upstream.gate.wait(20)
            connection.wfile.write(ENDING)

        place.script(begin)
        stream = client.chat.completions.create(**CHAT, stream=True)
        assert stream.response.headers["x-mipro-candidate-id"]
        assert stream.response.headers["x-mipro-rollout-id"] == "r1"
        place.upstream.gate.set()
        assert len(list(stream)) == 1


class TestUsage:
    """The session's account needs a stream's usage; a caller gets it who asks."""

    def test_it_is_counted_for_callers_who_do_not_ask(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        streamed(place, WHOLE.removesuffix(DONE) + USAGE_EVENT + DONE)
        pieces = list(client.chat.completions.create(**own_model(place), stream=True))
        assert all(piece.choices for piece in pieces)
        assert place.upstream.received[0].body["stream_options"] == {"include_usage": True}
        candidate = place.candidate()
        assert (candidate["prompt_tokens"], candidate["completion_tokens"]) == (21, 8)

    def test_nothing_else_is_kept_from_them(self, plain: httpx.Client, place: Place) -> None:
        filters = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
        body = WHOLE.removesuffix(DONE)
        streamed(place, filters + body + USAGE_EVENT[:40], USAGE_EVENT[40:] + DONE)
        answer = plain.post("/chat/completions", json={**own_model(place), "stream": True})
        assert answer.content == filters + body + DONE

    def test_what_asking_adds_is_taken_out(self, plain: httpx.Client, place: Place) -> None:
        null = event('{"content":"a"}', more='"usage":null,')
        told = event("{}", finish='"stop"', more='"usage":{"prompt_tokens":5},')
        streamed(place, null + told + DONE)
        answer = plain.post("/chat/completions", json={**own_model(place), "stream": True})
        assert answer.content == event('{"content":"a"}') + ENDING
        assert place.candidate()["prompt_tokens"] == 5

    def test_usage_that_comes_unasked_stays(self, plain: httpx.Client, place: Place) -> None:
        told = event("{}", finish='"stop"', more='"usage":{"prompt_tokens":5},') + DONE
        request = {**own_model(place), "stream": True}
        for expected in (ENDING, told, told):
            streamed(place, told)
            assert plain.post("/chat/completions", json=request).content == expected
        asked = ["stream_options" in call.body for call in place.upstream.received]
        assert asked == [True, False, False]
        assert place.candidate()["prompt_tokens"] == 15

    def test_callers_who_ask_get_it(self, client: openai.OpenAI, place: Place) -> None:
        streamed(place, WHOLE.removesuffix(DONE) + USAGE_EVENT + DONE)
        *_, last = client.chat.completions.create(**own_model(place), **ASKS_USAGE, stream=True)
        assert last.usage is not None
        assert last.usage.total_tokens == 29
        assert place.candidate()["completion_tokens"] == 8

    def test_other_options_of_the_stream_stay(self, plain: httpx.Client, place: Place) -> None:
        streamed(place, ENDING)
        options = {"include_obfuscation": False, "include_usage": False}
        plain.post(
            "/chat/completions",
            json={**own_model(place), "stream": True, "stream_options": options},
        )
        sent = place.upstream.received[0].body["stream_options"]
        assert sent == {"include_obfuscation": False, "include_usage": True}

    def test_whole_answers_are_not_asked(self, plain: httpx.Client, place: Place) -> None:
        for stream in ({}, {"stream": False}):
            plain.post("/chat/completions", json={**own_model(place), **stream})
            assert "stream_options" not in place.upstream.received[-1].body


class TestTypes:
    """OpenAI's client reads the stream that it asked for, whatever type the answer has."""

    @pytest.mark.parametrize("content_type", ["", "text/plain", "application/json"])
    def test_a_stream_of_another_type_is_one(
        self, client: openai.OpenAI, place: Place, content_type: str
    ) -> None:
        place.answer(WHOLE.removesuffix(DONE) + USAGE_EVENT + DONE, content_type=content_type)
        stream = client.chat.completions.create(**own_model(place), stream=True)
        assert stream.response.headers["content-type"] == (content_type or "text/event-stream")
        assert all(piece.choices for piece in stream)
        candidate = place.candidate()
        assert (candidate["completion_tokens"], candidate["failed_calls"]) == (8, 0)

    def test_its_events_do_not_wait_for_each_other(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        def begin(connection: Connection) -> None:
            connection.begin_stream(content_type="text/plain")
            connection.wfile.write(event('{"content":"a"}'))
            assert place.upstream.gate.wait(20)
            connection.wfile.write(ENDING)

        place.script(begin)
        stream = client.chat.completions.create(**CHAT, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        place.upstream.gate.set()
        assert len(list(stream)) == 1

    def test_a_whole_answer_to_a_request_for_a_stream_is_passed_on(
        self, plain: httpx.Client, place: Place
    ) -> None:
        place.answer(b"\n" + ANSWER, content_type="application/json")
        answer = plain.post("/chat/completions", json={**CHAT, "stream": True})
        assert answer.content == b"\n" + ANSWER
        assert place.candidate()["prompt_tokens"] == 21

    @pytest.mark.parametrize("body", [b"", b"<title>Log in</title>", b"busy"])
    def test_what_is_neither_is_a_failed_call(
        self, client: openai.OpenAI, place: Place, body: bytes
    ) -> None:
        place.answer(body, content_type="text/html")
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**CHAT, stream=True)
        assert caught.value.code == "CompletionInvalid"
        assert place.candidate()["failed_calls"] == 1


class TestEnds:
    """A stream that does not end well."""

    def test_a_dropped_one_raises_the_clients_own_error(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        def drop_in_mid_event(connection: Connection) -> None:
            connection.wfile.write(b'data: {"choices":[{"ind')
            connection.drop()

        place.script(place.upstream.stream(event('{"content":"a"}'), then=drop_in_mid_event))
        stream = client.chat.completions.create(**CHAT, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError, match="mid-answer") as caught:
            next(stream)
        assert caught.value.code == "UpstreamUnreachable"
        assert place.candidate()["failed_calls"] == 1

    def test_an_error_of_the_model_in_mid_stream_comes_through(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        error = b'data: {"error": {"message": "too hot", "type": "server_error", "code": 5}}\n\n'
        streamed(place, event('{"content":"a"}') + error)
        stream = client.chat.completions.create(**CHAT, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError, match="too hot"):
            next(stream)
        assert place.candidate()["failed_calls"] == 1

    def test_a_key_that_the_model_quotes_in_mid_stream_stays_secret(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        error = b'data: {"error": {"message": "no such key: sk-of-the-caller", "code": 5}}\n\n'
        streamed(place, event('{"content":"a"}'), error[:50], error[50:])
        own = client.with_options(default_headers={"x-provider-key": "sk-of-the-caller"})
        stream = own.chat.completions.create(**CHAT, stream=True)
        next(stream)
        with pytest.raises(openai.APIError, match=r"no such key: \*\*\*"):
            next(stream)
        assert "sk-of-the-caller" not in place.exported()

    def test_one_without_its_last_line_comes_through(
        self, plain: httpx.Client, place: Place
    ) -> None:
        body = event("{}", finish='"stop"').rstrip(b"\n")
        streamed(place, body)
        assert plain.post("/chat/completions", json={**CHAT, "stream": True}).content == body
        assert place.candidate()["failed_calls"] == 0

    def test_a_client_that_leaves_ends_the_models_work(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        place.script(place.upstream.stream(event('{"content":"a"}'), then=hang))
        with client.chat.completions.create(**CHAT, stream=True) as stream:
            next(stream)
        assert place.upstream.gone.wait(20)

    def test_a_refused_stream_is_an_error_before_it_begins(
        self, client: openai.OpenAI, place: Place
    ) -> None:
        place.script(answers(404, b'{"error": {"message": "no such model", "code": "nope"}}'))
        with pytest.raises(openai.NotFoundError, match="no such model"):
            client.chat.completions.create(**CHAT, stream=True)

    def test_a_refusal_may_come_as_an_event(self, client: openai.OpenAI, place: Place) -> None:
        body = b'data: {"error": {"message": "too long", "code": "context_length"}}\n\n'
        place.answer(body, status=400, content_type="text/event-stream")
        place.answer(body, status=400, content_type="text/event-stream")
        with pytest.raises(openai.BadRequestError, match="too long") as caught:
            client.chat.completions.create(**CHAT, stream=True)
        assert caught.value.code == "context_length"
