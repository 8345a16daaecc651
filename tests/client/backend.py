"""A backend on loopback that records what it is asked and answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.plugin import examples

KEY = "key-for-tests-0123456789"

STATUS: dict[str, Any] = examples.status(examples.candidate(1)).model_dump(mode="json")
RECEIPT: dict[str, Any] = {
    "status": "accepted",
    "session_id": "support-bot",
    "rollout_id": "r1",
    "candidate_id": "cand_1",
    "reward": 1.0,
    "attached": True,
}


@dataclass(frozen=True)
class Received:
    """A request as it came in. `port` is the caller's: equal ports are one connection."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    port: int


@dataclass(frozen=True)
class Answer:
    """What to answer: a body, sent as JSON unless it is bytes.

    `dropped` closes the connection instead; `held` waits for the end of the test before.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    dropped: bool = False
    held: bool = False


class Server(ThreadingHTTPServer):
    """Takes many connections at once."""

    request_queue_size = 256


class Backend:
    """Gives the scripted answers in turn; after the last one, `{}`.

    `closed` gets the caller's port of every connection that ends.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.closed: SimpleQueue[int] = SimpleQueue()
        self.script: deque[Answer] = deque()
        self.released = threading.Event()
        self._server = Server(("127.0.0.1", 0), _request_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answers(self, *answers: Answer | Mapping[str, Any]) -> None:
        """Script the next answers; a mapping is a body."""
        self.script.extend(a if isinstance(a, Answer) else Answer(dict(a)) for a in answers)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Method and path of every request."""
        return [(each.method, each.path) for each in self.received]

    @property
    def last(self) -> Received:
        """The newest request."""
        return self.received[-1]

    def stop(self) -> None:
        """End the server's thread; held answers are let go."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _request_of(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65_536

        def _answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            content = self.rfile.read(length)
            parts = urlsplit(self.path)
            backend.received.append(
                Received(
                    method=self.command,
                    path=parts.path,
                    query={name: values[0] for name, values in parse_qs(parts.query).items()},
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=json.loads(content) if content else None,
                    port=self.client_address[1],
                )
            )
            answer = backend.script.popleft() if backend.script else Answer({})
            if answer.held:
                backend.released.wait()
            if answer.dropped:
                self.close_connection = True
                return
            body = answer.body
            sent = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            """Let a caller that went away go."""
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True
            backend.closed.put(self.client_address[1])

    return Request
