"""What a client may do to its connection, and what that costs the server."""

from __future__ import annotations

import asyncio
import json
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from prefect_mipro.server.app import create_app
from prefect_mipro.server.connections import LARGEST_HEAD_BYTES, MOST_HEADERS, Stragglers
from prefect_mipro.server.settings import ServerSettings
from tests.server.live import LiveServer
from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS, chat_path
from tests.server.scripted_upstream import COMPLETION, ScriptedUpstream
from tests.server.test_main import first_line, process

MEGABYTE = 1_000_000
LARGEST_BODY = 2 * MEGABYTE
HOST = b"Host: localhost\r\n"
PING = b"GET /health HTTP/1.1\r\n" + HOST
LAST = b"Connection: close\r\n\r\n"
NEXT = PING + LAST


class Raw:
    """A client that sends any bytes, over a connection of its own each time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=20)

    def say(self, *pieces: bytes) -> bytes:
        """All that comes back until the server ends the connection; pieces it refuses are kept."""
        with self.connect() as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except ConnectionError:
                pass
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    answer = bytearray()
    try:
        while piece := connection.recv(65_536):
            answer += piece
    except ConnectionResetError:
        pass
    return bytes(answer)


@contextmanager
def memory_bounded_to(limit_bytes: int) -> Iterator[None]:
    """The block's peak of memory, in this process with client and server, stays below."""
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def live(model: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    settings = ServerSettings(
        database_url=f"sqlite:///{tmp_path_factory.mktemp('backend')}/mipro.db",
        upstream_url=model.url,
        max_body_bytes=LARGEST_BODY,
    )
    with LiveServer(create_app(settings)) as server:
        yield server


@pytest.fixture(scope="module")
def raw(live: LiveServer) -> Raw:
    return Raw(live.url)


@pytest.fixture(scope="module")
def proxy(raw: Raw) -> bytes:
    """Where a session's calls go."""
    body = json.dumps({"session_id": "s", "config_body": CONFIG}).encode()
    answer = raw.say(post(SESSIONS.encode(), b"Content-Length: %d\r\n" % len(body), LAST) + body)
    created: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return chat_path(created, "r1").encode()


def post(path: bytes, headers: bytes, end: bytes = b"\r\n") -> bytes:
    return b"POST %b HTTP/1.1\r\n%bContent-Type: application/json\r\n%b%b" % (
        path,
        HOST,
        headers,
        end,
    )


OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)
CREATE = (
    b"POST /api/v1/online/sessions HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST + OFFER
)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (PING + OFFER + b"\r\n", b"200"),
        (PING + OFFER.replace(b"h2c", b"websocket") + b"\r\n", b"200"),
        (CREATE + b'Content-Length: 13\r\n\r\n{"config": 1}', b"422"),
        (CREATE + b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"config": 1}\r\n0\r\n\r\n', b"422"),
    ],
    ids=["h2c", "websocket", "body", "chunks"],
)
@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_an_offer_to_change_the_protocol_is_ignored(
    raw: Raw, request_bytes: bytes, status: bytes, pieces: int
) -> None:
    sent = request_bytes * 3 + NEXT
    size = -(-len(sent) // pieces)
    answer = raw.say(*(sent[k : k + size] for k in range(0, len(sent), size)))
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [status] * 3 + [b"200"]
    # Of an empty body, something else would be said.
    assert answer.count(b"config is 1") == (3 if status == b"422" else 0)


class TestHeads:
    """What comes around a body."""

    def test_two_hundred_headers_pass(self, raw: Raw) -> None:
        headers = b"".join(b"x-%d: y\r\n" % i for i in range(MOST_HEADERS - 2))
        assert raw.say(PING + headers + LAST).startswith(b"HTTP/1.1 200 ")

    def test_a_head_of_nearly_32_kilobytes_passes(self, raw: Raw) -> None:
        header = b"x: " + b"y" * (LARGEST_HEAD_BYTES - 200) + b"\r\n"
        assert raw.say(PING + header + LAST).startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize(
        "headers",
        [
            b"".join(b"x-%d: y\r\n" % i for i in range(MOST_HEADERS)),
            b"x: " + b"y" * LARGEST_HEAD_BYTES + b"\r\n",
        ],
        ids=["too many", "too long"],
    )
    def test_more_is_refused_with_a_way_out(self, raw: Raw, headers: bytes) -> None:
        head, _, body = raw.say(PING + headers + LAST).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert "send fewer and shorter ones" in json.loads(body)["message"]

    @pytest.mark.parametrize(
        ("begin", "piece"),
        [
            (b"GET /", b"a"),
            (PING + b"x: ", b"y"),
            (PING, b"x: y\r\n"),
        ],
        ids=["URL", "header", "headers"],
    )
    def test_a_hundred_megabytes_are_not_waited_for(
        self, raw: Raw, begin: bytes, piece: bytes
    ) -> None:
        megabyte = piece * (MEGABYTE // len(piece))
        with memory_bounded_to(5 * MEGABYTE):
            answer = raw.say(begin, *[megabyte] * 100)
        assert answer.startswith(b"HTTP/1.1 431 ")

    @pytest.mark.parametrize(
        ("begin", "piece"),
        [(b"2;", b"a"), (b"2\r\n{}\r\n0\r\n", b"x: y\r\n")],
        ids=["chunk", "end"],
    )
    def test_what_chunks_carry_besides_the_body_is_bounded(
        self, raw: Raw, begin: bytes, piece: bytes
    ) -> None:
        megabyte = piece * (MEGABYTE // len(piece))
        head = post(SESSIONS.encode(), b"Transfer-Encoding: chunked\r\n")
        with memory_bounded_to(10 * MEGABYTE):
            assert raw.say(head + begin, *[megabyte] * 100) == b""

    def test_a_body_of_many_small_chunks_passes(self, raw: Raw) -> None:
        head = post(SESSIONS.encode(), b"Transfer-Encoding: chunked\r\n", LAST)
        answer = raw.say(head, b"1\r\n \r\n" * 30_000, b"2\r\n{}\r\n0\r\n\r\n")
        assert b"ConfigInvalid" in answer

    def test_a_process_has_these_bounds(self, tmp_path: Path) -> None:
        with process(tmp_path) as child:
            answer = Raw(first_line(child)).say(PING + b"x: ", *[b"y" * MEGABYTE] * 100)
        assert answer.startswith(b"HTTP/1.1 431 ")


class TestBodies:
    """A hundred megabytes, of which two are allowed."""

    @pytest.mark.parametrize("path", [SESSIONS.encode(), None], ids=["API", "proxy"])
    def test_announced_they_are_refused_unread(
        self, raw: Raw, proxy: bytes, path: bytes | None
    ) -> None:
        head = post(path or proxy, b"Content-Length: 100000000\r\n", LAST)
        with memory_bounded_to(5 * MEGABYTE):
            answer = raw.say(head, *[b" " * MEGABYTE] * 100)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"--max-body-bytes" in answer

    @pytest.mark.parametrize("path", [SESSIONS.encode(), None], ids=["API", "proxy"])
    def test_in_chunks_they_are_refused_at_the_limit(
        self, raw: Raw, proxy: bytes, path: bytes | None
    ) -> None:
        head = post(path or proxy, b"Transfer-Encoding: chunked\r\n", LAST)
        with memory_bounded_to(3 * LARGEST_BODY):
            answer = raw.say(head, *[b"f4240\r\n" + b" " * MEGABYTE + b"\r\n"] * 100)
        assert answer.startswith(b"HTTP/1.1 413 ")

    @pytest.mark.parametrize(
        "path", [b"/nowhere", b"/api/mipro/v1/nobody/r/chat/completions"], ids=["path", "session"]
    )
    def test_nobody_reads_them_where_nothing_is(self, raw: Raw, path: bytes) -> None:
        head = post(path, b"Content-Length: 100000000\r\n", LAST)
        with memory_bounded_to(5 * MEGABYTE):
            answer = raw.say(head, *[b" " * MEGABYTE] * 100)
        assert answer.startswith(b"HTTP/1.1 404 ")


class TestFraming:
    """Requests whose end a server before this one might see elsewhere."""

    @pytest.mark.parametrize(
        "headers",
        [
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            b"Content-Length: 5\r\nContent-Length: 0\r\n",
            b"Content-Length: 5, 5\r\n",
            b"Content-Length: +5\r\n",
            b"Content-Length: -1\r\n",
            b"Content-Length: 0x5\r\n",
            b"Content-Length: 99999999999999999999999\r\n",
            b"Transfer-Encoding: xchunked\r\n",
            b"Transfer-Encoding: chunked, identity\r\n",
            b"Transfer-Encoding : chunked\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            b"X: a\r\n Content-Length: 5\r\n",
            b"X: a\nContent-Length: 5\r\n",
            b"X: a\rb\r\n",
            b"X: a\0b\r\n",
        ],
    )
    def test_what_is_ambiguous_is_refused_and_nothing_behind_it_is_served(
        self, raw: Raw, proxy: bytes, headers: bytes
    ) -> None:
        answer = raw.say(post(proxy, headers) + b"0\r\n\r\n" + NEXT)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1

    @pytest.mark.parametrize(
        "request_",
        [b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\r\n"],
    )
    def test_other_protocols_are_refused(self, raw: Raw, request_: bytes) -> None:
        assert raw.say(request_).startswith(b"HTTP/1.1 400 ")

    def test_requests_in_one_piece_are_answered_in_turn(self, raw: Raw, proxy: bytes) -> None:
        body = json.dumps(CHAT).encode()
        call = post(proxy, b"Content-Length: %d\r\n" % len(body)) + body
        assert raw.say(call + call + NEXT).count(b"HTTP/1.1 200 ") == 3


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- a server has no reason to tell of half a request
        await asyncio.sleep(0)


def waited_for(live: LiveServer) -> list[object]:
    return [waits[0] for connection in live.connections if (waits := connection.waits_for)]


class TestStragglers:
    """Clients that keep the server waiting."""

    async def _look(self, live: LiveServer, stragglers: Stragglers, *moments: float) -> None:
        for now in moments:
            stragglers.look(live.connections, now=now)

    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            (b"", "head"),
            (b"GET /he", "head"),
            (post(SESSIONS.encode(), b"Content-Length: 9\r\n") + b"{", "body"),
        ],
        ids=["nothing", "half a head", "half a body"],
    )
    def test_half_a_request_is_waited_for_half_a_minute(
        self, live: LiveServer, raw: Raw, sent: bytes, reason: str
    ) -> None:
        with raw.connect() as client:
            client.sendall(sent)
            live.run(until(lambda: waited_for(live) == [reason]))
            stragglers = Stragglers()
            live.run(self._look(live, stragglers, 0.0, 29.0))
            assert len(live.connections) == 1
            live.run(self._look(live, stragglers, 31.0))
            read_all(client)

    def test_half_a_second_request_is_waited_for_no_longer(
        self, live: LiveServer, raw: Raw
    ) -> None:
        with raw.connect() as client:
            client.sendall(PING + b"\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
            client.sendall(b"GET /he")
            live.run(until(lambda: waited_for(live) == ["head"]))
            live.run(self._look(live, Stragglers(), 0.0, 31.0))
            assert read_all(client) == b""

    def test_more_of_it_is_waited_for_longer(self, live: LiveServer, raw: Raw) -> None:
        with raw.connect() as client:
            client.sendall(post(SESSIONS.encode(), b"Content-Length: 200000\r\n"))
            live.run(until(lambda: waited_for(live) == ["body"]))
            stragglers = Stragglers()
            live.run(self._look(live, stragglers, 0.0))
            client.sendall(b" " * 50_000)
            live.run(until(lambda: live.connections[0].received_bytes > 50_000))
            live.run(self._look(live, stragglers, 34.0))
            assert len(live.connections) == 1
            live.run(self._look(live, stragglers, 36.0))
            read_all(client)

    def test_who_takes_nothing_of_an_answer_is_waited_for_two_minutes(
        self, live: LiveServer, raw: Raw, proxy: bytes, model: ScriptedUpstream
    ) -> None:
        answer = {**COMPLETION, "padding": "x" * 20 * MEGABYTE}
        model.script.append(lambda connection: connection.answer(json.dumps(answer).encode()))
        body = json.dumps(CHAT).encode()
        with raw.connect() as client:
            client.sendall(post(proxy, b"Content-Length: %d\r\n" % len(body)) + body)
            live.run(until(lambda: waited_for(live) == ["reader"]))
            stragglers = Stragglers()
            live.run(self._look(live, stragglers, 0.0, 119.0))
            assert len(live.connections) == 1
            live.run(self._look(live, stragglers, 121.0))
            assert len(read_all(client)) < 20 * MEGABYTE

    def test_what_is_served_or_idle_is_left_alone(
        self, live: LiveServer, raw: Raw, proxy: bytes
    ) -> None:
        with raw.connect() as client:
            client.sendall(PING + b"\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
            live.run(self._look(live, Stragglers(), 0.0, 1_000.0))
            client.sendall(NEXT)
            assert read_all(client).startswith(b"HTTP/1.1 200 ")
