"""The upstream of the benchmark: a chat model that always says the same, and is never the brake.

    python -m benchmarks.gateways.mock

prints its base URL and serves until its standard input ends. `/pace/50/5` makes it wait 50 ms
before each first byte and 5 ms between the events of a stream from then on; its answer, like that
of `/calls`, is the number of calls so far.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import cast

import httptools
import uvloop

from benchmarks.gateways.payloads import EVENT_STREAM, answer, events

BACKLOG = 2_048
STREAMED = (b'"stream":true', b'"stream": true')


def _plain(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_mock\r\n"
        b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


ANSWER = _plain(answer())
STREAM_HEAD = (
    f"HTTP/1.1 200 OK\r\ncontent-type: {EVENT_STREAM}; charset=utf-8\r\n"
    "x-request-id: req_mock\r\ntransfer-encoding: chunked\r\n\r\n"
).encode()
_first, *_others = map(_chunk, events())
STREAM = (STREAM_HEAD + _first, *_others[:-1], _others[-1] + b"0\r\n\r\n")


class Model:
    """What all connections share."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        self.gap_seconds = 0.0
        self.calls = 0


class Connection(asyncio.Protocol):
    """One kept-alive connection. Calls on it come one after the other."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._url.endswith(b"/chat/completions"):
            self._write(_plain(self._control(self._url.decode())))
            return
        self._model.calls += 1
        if any(word in self._body for word in STREAMED):
            self._later(self._model.delay_seconds, 0)
        elif self._model.delay_seconds:
            self._loop.call_later(self._model.delay_seconds, self._write, ANSWER)
        else:
            self._write(ANSWER)

    def _control(self, url: str) -> bytes:
        match url.strip("/").split("/"):
            case ["pace", delay_ms, gap_ms]:
                self._model.delay_seconds = float(delay_ms) / 1_000
                self._model.gap_seconds = float(gap_ms) / 1_000
        return str(self._model.calls).encode()

    def _later(self, seconds: float, number: int) -> None:
        if seconds:
            self._loop.call_later(seconds, self._stream, number)
        else:
            self._stream(number)

    def _stream(self, number: int) -> None:
        self._write(STREAM[number])
        if number + 1 < len(STREAM) and not self._transport.is_closing():
            self._later(self._model.gap_seconds, number + 1)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def serve() -> None:
    """Until standard input ends."""
    loop, stop, model = asyncio.get_running_loop(), asyncio.Event(), Model()
    server = await loop.create_server(lambda: Connection(model), "127.0.0.1", 0, backlog=BACKLOG)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stop.set)), daemon=True
    ).start()
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve())
