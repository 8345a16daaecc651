"""Each of the four timeouts: what it ends, and what it says."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from prefect_mipro.errors import UpstreamTimedOut, UpstreamUnreachable
from prefect_mipro.server.upstream.patience import BackOff, Timeouts
from tests.server.scripted_upstream import DONE, ScriptedUpstream, complete, event, hang
from tests.server.upstream.calls import BODY, read, upstream_at


async def test_a_server_that_does_not_begin_times_out_and_is_not_asked_again(
    server: ScriptedUpstream,
) -> None:
    server.script.append(hang)
    async with upstream_at(server.url, timeouts=Timeouts(first_byte_seconds=0.05)) as upstream:
        with pytest.raises(UpstreamTimedOut, match=server.url) as error:
            await read(upstream)
    assert "--upstream-first-byte-timeout-seconds" in error.value.message
    assert "timeouts.first_byte_seconds" in error.value.message
    assert len(server.received) == 1
    assert await asyncio.to_thread(server.gone.wait, 10)


async def test_silence_in_the_middle_of_a_stream_times_out(server: ScriptedUpstream) -> None:
    server.script.append(server.stream(event("a"), then=hang))
    async with (
        upstream_at(server.url, timeouts=Timeouts(silence_seconds=0.2)) as upstream,
        upstream.chat(BODY) as reply,
    ):
        chunks = reply.chunks()
        assert await anext(chunks) == event("a")
        with pytest.raises(UpstreamTimedOut, match="--upstream-silence-timeout-seconds"):
            await anext(chunks)


async def test_a_first_byte_may_take_longer_than_a_later_one(server: ScriptedUpstream) -> None:
    def wait_and_answer(connection: Any) -> None:
        assert server.gate.wait(10)
        complete(connection)

    server.script.append(wait_and_answer)
    timeouts = Timeouts(first_byte_seconds=20.0, silence_seconds=0.02)
    async with upstream_at(server.url, timeouts=timeouts) as upstream:
        call = asyncio.create_task(read(upstream))
        await asyncio.to_thread(server.arrived.wait, 10)
        await asyncio.sleep(0.1)
        server.gate.set()
        assert (await call)[0] == 200


async def test_an_answer_that_takes_too_long_in_all_times_out(server: ScriptedUpstream) -> None:
    server.script.append(server.stream(event("a"), then=hang))
    async with (
        upstream_at(server.url, timeouts=Timeouts(total_seconds=0.3)) as upstream,
        upstream.chat(BODY) as reply,
    ):
        with pytest.raises(UpstreamTimedOut, match="--upstream-total-timeout-seconds"):
            await reply.read()


async def test_a_reader_who_takes_his_time_is_not_cut_off(server: ScriptedUpstream) -> None:
    server.script.append(server.stream(event("a"), event("b") + DONE))
    server.gate.set()
    async with (
        upstream_at(server.url, timeouts=Timeouts(silence_seconds=0.05)) as upstream,
        upstream.chat(BODY) as reply,
    ):
        chunks = reply.chunks()
        first = await anext(chunks)
        await asyncio.sleep(0.1)
        assert b"".join([first, *[chunk async for chunk in chunks]]) == (
            event("a") + event("b") + DONE
        )


async def test_a_server_that_accepts_no_connection_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as speechless:
        url = f"https://127.0.0.1:{speechless.getsockname()[1]}/v1"
        timeouts = Timeouts(connect_seconds=0.1)
        async with upstream_at(url, timeouts=timeouts, back_off=BackOff(repeats=0)) as upstream:
            with pytest.raises(UpstreamUnreachable, match="does not accept connections in time"):
                await read(upstream)
