"""HTTP/1.1 connections with bounds: on what comes around a body, and on how long a client takes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Receive, Scope, Send

LARGEST_HEAD_BYTES = 32_768
MOST_HEADERS = 200
LOOK_SECONDS = 5
# A request that is slower than both together is not waited for.
SLOWEST_REQUEST_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 10_000
SLOWEST_READER_SECONDS = 120.0

_BODY = orjson.dumps(
    {
        "error": "InputInvalid",
        "message": f"the request's URL and headers have more than {LARGEST_HEAD_BYTES} bytes, or "
        f"there are more than {MOST_HEADERS} headers; send fewer and shorter ones",
        "code": "InputInvalid",
    }
)
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(_BODY)),
    (b"connection", b"close"),
]
# What tells where a body ends.
_FRAMING = (b"content-length", b"transfer-encoding")


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%s: %s\r\n" % header for header in headers)


_ANSWER = b"".join(
    [b"HTTP/1.1 431 Request Header Fields Too Large\r\n", _lines(_HEADERS), b"\r\n", _BODY]
)


class Connection(HttpToolsProtocol):
    """Uvicorn's own, which by itself takes heads, chunk extensions and trailers of any size.

    `outside_bytes` are those that came with the request under way and are not of its body.
    `received_bytes` are all that came. `has_request` says whether a head was complete yet.
    """

    has_request = False
    outside_bytes = 0
    received_bytes = 0
    _after_offer = 0
    _goes_on = False

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.outside_bytes += len(data)
        while data:
            self._after_offer = 0
            super().data_received(data)
            data = data[self._after_offer :] if self._after_offer else b""
        if self.outside_bytes > LARGEST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore an offer to change the protocol, which a server may (RFC 9110, section 7.8).

        Java's client makes one with its first request. The parser takes nothing after the head of
        such a request: a new one, which is told how long the body is, goes on.
        """
        offer = sys.exception()
        assert isinstance(offer, HttpParserUpgrade)
        framing = [header for header in self.scope["headers"] if header[0] in _FRAMING]
        self._goes_on = True
        self.parser = HttpRequestParser(self)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + _lines(framing) + b"\r\n")
        self._after_offer = offer.args[0]

    def on_headers_complete(self) -> None:
        if self._goes_on:
            self._goes_on = False
            return
        if len(self.headers) > MOST_HEADERS or (
            self.outside_bytes > LARGEST_HEAD_BYTES and self._head_bytes > LARGEST_HEAD_BYTES
        ):
            self.app = _refuse_head
        super().on_headers_complete()
        self.headers = []  # where trailers go: nobody shall take them for headers
        self.has_request = True

    def on_chunk_header(self) -> None:
        """Each chunk of a body may have a line of its own."""
        self.outside_bytes = 0

    def on_body(self, body: bytes) -> None:
        self.outside_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.outside_bytes = 0
        super().on_message_complete()

    @property
    def waits_for(self) -> tuple[object, ...] | None:
        """What it waits for from its client; the same for as long as nothing comes forward.

        None between two requests, which has its own limit, and while it is the server's turn.
        """
        cycle = self.cycle
        if self.flow.write_paused:  # also of an answer that the server is done with
            return ("reader", cycle, self.transport.get_write_buffer_size())
        if not self.has_request or cycle.response_complete:
            return None if self.timeout_keep_alive_task else ("head", cycle)
        if cycle.more_body and not self.flow.read_paused:
            return ("body", cycle)
        return None

    @property
    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        if not self.has_request or self.cycle.response_complete:
            self.transport.write(_ANSWER)
        self.transport.close()


async def _refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 431, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


@dataclass(frozen=True)
class _Wait:
    """For what a client is waited for, since when on the loop's clock, and what had come then."""

    reason: tuple[object, ...]
    since: float
    received_bytes: int


class Stragglers:
    """Ends connections whose client keeps the server waiting: for a request, or with an answer.

    A request may take 30 seconds, and a second more for every 10 KB of it. Of an answer something
    must be taken within two minutes. Connections are checked every few seconds, off the request
    path.
    """

    def __init__(
        self,
        *,
        request_seconds: float = SLOWEST_REQUEST_SECONDS,
        reader_seconds: float = SLOWEST_READER_SECONDS,
    ) -> None:
        self._request_seconds = request_seconds
        self._reader_seconds = reader_seconds
        self._waits: dict[Connection, _Wait] = {}

    def look(self, connections: Iterable[asyncio.Protocol], *, now: float) -> None:
        """End those that are due at `now`, in seconds of the loop's clock."""
        before, self._waits = self._waits, {}
        for connection in connections:
            if not isinstance(connection, Connection) or not (reason := connection.waits_for):
                continue
            wait = before.get(connection)
            if wait is None or wait.reason != reason:
                wait = _Wait(reason, since=now, received_bytes=connection.received_bytes)
            if now - wait.since > self._patience(wait, connection):
                connection.transport.abort()
            else:
                self._waits[connection] = wait

    def _patience(self, wait: _Wait, connection: Connection) -> float:
        if wait.reason[0] == "reader":
            return self._reader_seconds
        sent_bytes = connection.received_bytes - wait.received_bytes
        return self._request_seconds + sent_bytes / SLOWEST_BYTES_PER_SECOND
