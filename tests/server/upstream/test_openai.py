"""Calls to a model's server over real sockets: what passes, what is repeated, what fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_mipro.errors import Overloaded, UpstreamFailed, UpstreamTimedOut, UpstreamUnreachable
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.interface import Reply
from prefect_mipro.server.upstream.limits import Limits
from prefect_mipro.server.upstream.patience import BackOff, Timeouts
from tests.server.scripted_upstream import (
    COMPLETION,
    DONE,
    Connection,
    ScriptedUpstream,
    answers,
    break_off,
    complete,
    drop,
    event,
    hang,
    speak_no_http,
)
from tests.server.upstream.calls import BODY, read, upstream_at


async def test_the_body_arrives_unchanged_and_the_answer_comes_back(
    server: ScriptedUpstream,
) -> None:
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert reply.status == 200
        assert reply.content_type == "application/json"
        assert reply.retry_after_seconds is None
        assert json.loads(await reply.read()) == COMPLETION
    (received,) = server.received
    assert received.path == "/v1/chat/completions"
    assert received.body == BODY


async def test_an_integer_of_any_size_arrives_as_it_is(server: ScriptedUpstream) -> None:
    body: ChatBody = {"messages": [{"role": "user", "content": "größer"}], "seed": 2**70}
    async with upstream_at(server.url) as upstream:
        await read(upstream, body)
    assert server.received[0].body == body


async def test_headers_of_a_call_are_asked_for_once_and_sent_with_each_repeat(
    server: ScriptedUpstream,
) -> None:
    server.script.append(answers(503))
    numbers = itertools.count(1)
    async with upstream_at(
        server.url, call_headers=lambda: {"traceparent": f"00-{next(numbers)}"}
    ) as upstream:
        await read(upstream)
        await read(upstream)
    sent = [received.headers["traceparent"] for received in server.received]
    assert sent == ["00-1", "00-1", "00-2"]


async def test_repeats_are_counted_by_what_went_before(server: ScriptedUpstream) -> None:
    server.script.extend([answers(429), answers(503), complete, drop, complete])
    async with upstream_at(server.url) as upstream:
        await read(upstream)
        await read(upstream)
    assert upstream.counts.repeats == {"429": 1, "5xx": 1, "unreachable": 1}


async def test_a_body_of_several_megabytes_arrives_whole(server: ScriptedUpstream) -> None:
    large = {"messages": [{"role": "user", "content": "x" * 3_000_000}]}
    async with upstream_at(server.url) as upstream:
        await read(upstream, large)
    assert server.received[0].body == large


async def test_key_and_extra_headers_are_sent(server: ScriptedUpstream) -> None:
    async with upstream_at(
        server.url, api_key=SecretStr("sk-1"), headers={"X-Team": "a"}
    ) as upstream:
        await read(upstream)
    assert server.received[0].headers["authorization"] == "Bearer sk-1"
    assert server.received[0].headers["x-team"] == "a"


async def test_without_a_key_no_authorization_is_sent(server: ScriptedUpstream) -> None:
    async with upstream_at(server.url) as upstream:
        await read(upstream)
    assert "authorization" not in server.received[0].headers


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("?api-version=2024-06-01", "/v1/chat/completions?api-version=2024-06-01"),
    ],
)
async def test_the_chat_path_follows_the_base_url(
    server: ScriptedUpstream, suffix: str, path: str
) -> None:
    async with upstream_at(server.url + suffix) as upstream:
        await read(upstream)
    assert server.received[0].path == path


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_passing_refusal_is_asked_again(server: ScriptedUpstream, status: int) -> None:
    server.script.extend([answers(status), answers(status), complete])
    async with upstream_at(server.url) as upstream:
        assert (await read(upstream))[0] == 200
    assert len(server.received) == 3


async def test_the_last_refusal_is_passed_on_with_its_body(server: ScriptedUpstream) -> None:
    server.script.extend([answers(429, retry_after="0")] * 2 + [answers(429, b'{"last": 1}')])
    async with upstream_at(server.url) as upstream:
        assert await read(upstream) == (429, b'{"last": 1}')
    assert len(server.received) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
async def test_a_lasting_refusal_is_passed_on_at_once(
    server: ScriptedUpstream, status: int
) -> None:
    server.script.append(answers(status))
    async with upstream_at(server.url) as upstream:
        assert await read(upstream) == (status, b'{"error": {"message": "told so"}}')
    assert len(server.received) == 1


async def test_a_retry_after_beyond_the_longest_wait_is_a_refusal(
    server: ScriptedUpstream,
) -> None:
    server.script.append(answers(429, retry_after="11"))
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert reply.status == 429
        assert reply.retry_after_seconds == 11.0
    assert len(server.received) == 1


async def test_a_retry_after_may_be_a_date(server: ScriptedUpstream) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.script.append(answers(503, retry_after=date))
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert reply.retry_after_seconds == pytest.approx(100, abs=2)


@pytest.mark.parametrize("told", ["soon", "-5", "nan", "1e9999", "9" * 400, "Mon, 99 Foo"])
async def test_a_retry_after_that_says_nothing_is_ignored(
    server: ScriptedUpstream, told: str
) -> None:
    server.script.append(answers(400, retry_after=told))
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert reply.retry_after_seconds is None


async def test_a_dropped_connection_is_tried_again(server: ScriptedUpstream) -> None:
    server.script.extend([drop, drop, complete])
    async with upstream_at(server.url) as upstream:
        assert (await read(upstream))[0] == 200
    assert len(server.received) == 3


async def test_a_server_that_always_drops_is_unreachable(server: ScriptedUpstream) -> None:
    server.script.extend([drop] * 3)
    async with upstream_at(server.url) as upstream:
        with pytest.raises(UpstreamUnreachable, match=server.url):
            await read(upstream)
    assert len(server.received) == 3


async def test_a_refused_connection_names_the_url_and_no_secret() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unheard.getsockname()[1]}"
        async with upstream_at(
            f"http://{host}/v1?key=hidden", api_key=SecretStr("sk-secret")
        ) as upstream:
            with pytest.raises(UpstreamUnreachable) as error:
                await read(upstream)
            shown = f"{error.value} {upstream!r}"
    assert f"http://{host}/v1" in shown
    assert not any(secret in shown for secret in ("hidden", "sk-secret"))


async def test_a_host_without_an_address_is_unreachable() -> None:
    async with upstream_at("http://nowhere.invalid/v1") as upstream:
        with pytest.raises(UpstreamUnreachable, match=r"http://nowhere\.invalid/v1"):
            await read(upstream)


async def test_an_answer_that_breaks_off_is_unreachable(server: ScriptedUpstream) -> None:
    server.script.append(break_off)
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await reply.read()


async def test_what_had_come_when_it_broke_off_is_read_first(server: ScriptedUpstream) -> None:
    def break_off_and_say_so(connection: Connection) -> None:
        break_off(connection)
        server.gone.set()

    pieces = []

    async def read_on(reply: Reply) -> None:
        async for piece in reply.chunks():
            pieces.append(piece)

    server.script.append(break_off_and_say_so)
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert await asyncio.to_thread(server.gone.wait, 10)
        await read(upstream)  # its answer comes after the end of the first
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await read_on(reply)
    assert b"".join(pieces) == b'{"id": "chatcm'


async def test_a_server_that_speaks_no_http_fails(server: ScriptedUpstream) -> None:
    server.script.append(speak_no_http)
    async with upstream_at(server.url) as upstream:
        with pytest.raises(UpstreamFailed, match="not HTTP"):
            await read(upstream)


async def test_a_redirect_is_not_followed(server: ScriptedUpstream) -> None:
    server.script.append(answers(307, location="http://elsewhere.invalid/v1"))
    async with upstream_at(server.url) as upstream:
        with pytest.raises(UpstreamFailed, match="redirects"):
            await read(upstream)


async def test_a_page_instead_of_json_keeps_its_content_type(server: ScriptedUpstream) -> None:
    server.script.append(answers(200, b"<html>", content_type="text/html"))
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert await reply.read() == b"<html>"


async def test_a_stream_is_passed_on_as_it_arrives(server: ScriptedUpstream) -> None:
    server.script.append(server.stream(event("a"), event("b") + DONE))
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert reply.content_type == "text/event-stream; charset=utf-8"
        chunks = reply.chunks()
        assert await anext(chunks) == event("a")
        server.gate.set()
        assert b"".join([chunk async for chunk in chunks]) == event("b") + DONE


async def test_leaving_a_stream_early_closes_its_connection(server: ScriptedUpstream) -> None:
    server.script.append(server.stream(event("a"), then=hang))
    async with upstream_at(server.url) as upstream:
        async with upstream.chat(BODY) as reply:
            await anext(reply.chunks())
        assert await asyncio.to_thread(server.gone.wait, 10)


async def test_cancelling_a_call_closes_its_connection(server: ScriptedUpstream) -> None:
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def arrive_and_hang(connection: Any) -> None:
        loop.call_soon_threadsafe(arrived.set)
        hang(connection)

    server.script.append(arrive_and_hang)
    async with upstream_at(server.url) as upstream:
        call = asyncio.create_task(read(upstream))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(server.gone.wait, 10)


async def test_a_call_after_closing_is_refused(server: ScriptedUpstream) -> None:
    async with upstream_at(server.url) as upstream:
        await read(upstream)
    with pytest.raises(UpstreamUnreachable, match="is closed"):
        await read(upstream)


async def test_closing_breaks_off_calls_under_way_and_repeats_none(
    server: ScriptedUpstream,
) -> None:
    server.script.append(hang)
    async with upstream_at(server.url, back_off=BackOff(first_wait_seconds=60.0)) as upstream:
        call = asyncio.create_task(read(upstream))
        await asyncio.to_thread(server.arrived.wait, 10)
    with pytest.raises(UpstreamUnreachable, match="was closed"):
        await call
    assert len(server.received) == 1


async def test_at_most_so_many_calls_are_under_way(server: ScriptedUpstream) -> None:
    server.script.extend([server.stream(event("a"), event("b"))] * 2)
    limits = Limits(max_concurrent_calls=2)
    async with upstream_at(server.url, limits=limits) as upstream:
        async with upstream.chat(BODY), upstream.chat(BODY):
            third = asyncio.create_task(read(upstream))
            await asyncio.sleep(0)
            assert (upstream.counts.in_flight, upstream.counts.waiting) == (2, 1)
            assert len(server.received) == 2
            server.gate.set()
        assert (await third)[0] == 200
        assert upstream.counts.calls == 0


async def test_a_place_is_given_back_after_each_kind_of_end(server: ScriptedUpstream) -> None:
    limits = Limits(max_concurrent_calls=1, max_waiting_calls=0)
    timeouts = Timeouts(first_byte_seconds=0.1)
    async with upstream_at(
        server.url, limits=limits, timeouts=timeouts, back_off=BackOff(repeats=0)
    ) as upstream:
        server.script.extend([drop, hang, answers(400), break_off])
        for expected in (UpstreamUnreachable, UpstreamTimedOut, None, UpstreamUnreachable, None):
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                await read(upstream)
        assert upstream.counts.calls == 0


async def test_repeats_count_as_calls_of_their_minute(server: ScriptedUpstream) -> None:
    server.script.extend([answers(503)] * 2)
    async with upstream_at(server.url, limits=Limits(calls_per_minute=2)) as upstream:
        with pytest.raises(Overloaded):
            await read(upstream)
        assert (upstream.counts.refused, upstream.counts.calls) == (1, 0)
    assert len(server.received) == 2


async def test_headers_worth_passing_on_are_told_in_lower_case(server: ScriptedUpstream) -> None:
    told = {
        "X-Request-Id": "req-1",
        "OpenAI-Processing-Ms": "5",
        "X-RateLimit-Remaining-Requests": "9",
        "X-Should-Retry": "false",
        "OpenAI-Organization": "acme-4711",
        "OpenAI-Project": "proj-1",
        "Set-Cookie": "a=b",
        "Server-Timing": "x",
    }
    server.script.append(lambda connection: connection.answer(b"{}", headers=told))
    async with upstream_at(server.url) as upstream, upstream.chat(BODY) as reply:
        assert dict(reply.headers) == {
            "x-request-id": "req-1",
            "openai-processing-ms": "5",
            "x-ratelimit-remaining-requests": "9",
            "x-should-retry": "false",
        }


async def test_a_header_that_quotes_the_key_is_told_without_it(server: ScriptedUpstream) -> None:
    key = "sk-of-the-server-1"
    told = {"X-Request-Id": f"req of {key}"}
    content_type = f"application/json; profile={key}"
    server.script.append(lambda c: c.answer(b"{}", headers=told, content_type=content_type))
    async with (
        upstream_at(server.url, api_key=SecretStr(key)) as upstream,
        upstream.chat(BODY) as reply,
    ):
        assert reply.headers["x-request-id"] == "req of ***"
        assert reply.content_type == "application/json; profile=***"


@pytest.mark.parametrize("status", [101, 600, 999])
async def test_a_status_that_no_answer_has_is_a_failure(
    server: ScriptedUpstream, status: int
) -> None:
    server.script.append(answers(status))
    async with upstream_at(server.url) as upstream:
        with pytest.raises(UpstreamFailed, match=f"status {status}, which no answer has"):
            await read(upstream)


async def test_connections_are_kept_for_the_next_call(server: ScriptedUpstream) -> None:
    ports = []

    def note_port(connection: Any) -> None:
        ports.append(connection.client_address[1])
        complete(connection)

    server.script.extend([note_port] * 3)
    async with upstream_at(server.url) as upstream:
        for _ in range(3):
            await read(upstream)
    assert len(set(ports)) == 1
