"""The whole app behind a real socket, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
from starlette.types import ASGIApp

from prefect_mipro.server.connections import Connection

T = TypeVar("T")


class LiveServer:
    """An app on a free port of loopback for the length of a `with` block."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, http=Connection, log_config=None, lifespan="on", ws="none")
        self._server = _Announcing(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def connections(self) -> list[Connection]:
        """Those that are open."""
        opened = list(self._server.server_state.connections)
        return [connection for connection in opened if isinstance(connection, Connection)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the server's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._server.loop).result(timeout=30)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._server.ready.wait(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.ready.set()
