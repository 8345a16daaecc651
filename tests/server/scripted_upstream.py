"""A model's server in a thread that does to each call what the test has scripted."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}
LONGEST_WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Received:
    """A call as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any
    raw: bytes = b""


class Connection(BaseHTTPRequestHandler):
    """One call: what a script can do with it."""

    protocol_version = "HTTP/1.1"
    upstream: ScriptedUpstream

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.upstream.received.append(Received(self.path, headers, json.loads(raw), raw))
        self.upstream.arrived.set()
        script = self.upstream.script
        (script.popleft() if script else complete)(self)

    def answer(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Send it; with a `length` that is not the body's, the answer is incomplete."""
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self, content_type: str = "text/event-stream; charset=utf-8") -> None:
        """Send the headers of an event stream that ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def drop(self) -> None:
        """End the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def wait_until_gone(self) -> None:
        """Say nothing more until the caller closes the connection."""
        self.close_connection = True
        self.connection.settimeout(LONGEST_WAIT_SECONDS)
        if not self.rfile.read(1):
            self.upstream.gone.set()

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


Script = Callable[[Connection], None]


def complete(connection: Connection) -> None:
    """A whole chat completion."""
    connection.answer(json.dumps(COMPLETION).encode())


def answers(status: int, body: bytes = b'{"error": {"message": "told so"}}', **more: str) -> Script:
    """An answer with that status; keywords are headers, `retry_after="1"`."""
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    return lambda connection: connection.answer(body, status=status, headers=headers)


def drop(connection: Connection) -> None:
    """No answer at all."""
    connection.drop()


def hang(connection: Connection) -> None:
    """No answer, for as long as the caller waits."""
    connection.wait_until_gone()


def break_off(connection: Connection) -> None:
    """The first bytes of an answer."""
    connection.answer(b'{"id": "chatcm', length=1_000)
    connection.drop()


def speak_no_http(connection: Connection) -> None:
    """Bytes that mean nothing."""
    connection.wfile.write(b"\x00\x01 what is this\r\n\r\n")
    connection.drop()


def event(text: str) -> bytes:
    """One event of a streamed completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode() + b"\n\n"


DONE = (
    b'data: {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
    b"\n\ndata: [DONE]\n\n"
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers may hang up when they like; every other fault is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ScriptedUpstream:
    """Answers with a completion where no script is left.

    `arrived` is set by each call, `gone` when a caller of `hang` has left; `gate` holds a stream.
    """

    def __init__(self) -> None:
        self.script: deque[Script] = deque()
        self.received: list[Received] = []
        self.arrived = threading.Event()
        self.gate = threading.Event()
        self.gone = threading.Event()
        handler = type("Handler", (Connection,), {"upstream": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def reset(self) -> None:
        """Forget what was received and what is scripted."""
        self.script.clear()
        self.received.clear()
        for happened in (self.arrived, self.gate, self.gone):
            happened.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def stream(self, *pieces: bytes, then: Script | None = None) -> Script:
        """The first piece at once, the others when the gate is open, then what comes next."""

        def script(connection: Connection) -> None:
            connection.begin_stream()
            for number, piece in enumerate(pieces):
                if number:
                    assert self.gate.wait(LONGEST_WAIT_SECONDS)
                connection.wfile.write(piece)
            if then is not None:
                then(connection)

        return script

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
