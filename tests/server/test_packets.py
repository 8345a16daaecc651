"""Answers leave in as few packets as they can, and no later for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from starlette.responses import Response, StreamingResponse

from tests.server.live import LiveServer


def app() -> FastAPI:
    """It answers whole, and in two pieces of which the second waits for a call."""
    app = FastAPI()
    going = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await going.wait()
        yield b"second"

    @app.get("/whole")
    async def whole() -> Response:
        return Response(b"body")

    @app.get("/pieces")
    async def streamed() -> StreamingResponse:
        return StreamingResponse(pieces())

    @app.get("/go")
    async def go() -> Response:
        going.set()
        return Response(b"gone")

    return app


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    with LiveServer(app()) as server:
        url = urlsplit(server.url)
        yield str(url.hostname), int(url.port or 0)


def ask(connection: socket.socket, path: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_head_and_body_come_at_once_again_and_again(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(3):
            ask(connection, "/whole")
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nbody")


def test_a_piece_of_a_stream_does_not_wait_for_the_next(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        ask(connection, "/pieces")
        seen = b""
        while b"first" not in seen:
            seen += connection.recv(65_536)
        with socket.create_connection(address, timeout=20) as other:
            ask(other, "/go")
            assert other.recv(65_536).endswith(b"gone")
        while not seen.endswith(b"0\r\n\r\n"):
            seen += connection.recv(65_536)
    assert seen.partition(b"\r\n\r\n")[2] == b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"


def test_what_is_held_is_sent_before_the_connection_ends(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /whole HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        seen = b""
        while piece := connection.recv(65_536):
            seen += piece
    assert seen.endswith(b"\r\n\r\nbody")
