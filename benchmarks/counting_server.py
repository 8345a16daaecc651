"""The embedded model behind an OpenAI-compatible URL that counts calls by the label in its path.

Whatever reaches the model passes here, so nobody's calls stay hidden: those of optimizers, of their
proposers and of their retries.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_mipro.errors import MiproError
from prefect_mipro.server.upstream.embedded import EmbeddedUpstream
from prefect_mipro.server.upstream.interface import Upstream


@dataclass(frozen=True)
class Usage:
    """Calls that came in under a label, refused ones included, and the tokens of their answers."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.calls - other.calls,
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
        )


class CountingServer:
    """A model server for the length of a `with` block, on a thread and a free port of its own."""

    def __init__(self, upstream: Upstream | None = None) -> None:
        self._upstream = upstream or EmbeddedUpstream()
        self._usage: dict[str, Usage] = {}
        self._under_way = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ready = threading.Event()
        app = Starlette(
            routes=[Route("/{label}/v1/chat/completions", self._chat, methods=["POST"])],
            lifespan=self._lifespan,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", ws="none")
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="counting-server"
        )

    def url(self, label: str) -> str:
        """The base URL for an OpenAI client whose calls are counted under that label."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/{label}/v1"

    def usage(self, *labels: str) -> Usage:
        """What has come in under these labels so far, together."""
        return sum((self._usage.get(label, Usage()) for label in labels), Usage())

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return self._under_way == 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
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

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._ready.set()
        yield
        await self._upstream.close()

    async def _chat(self, request: Request) -> Response:
        label = request.path_params["label"]
        self._count(label, Usage(calls=1))
        self._under_way += 1
        try:
            async with self._upstream.chat(await request.json()) as reply:
                body = await reply.read()
        except MiproError as error:
            return JSONResponse({"error": {"message": error.message}}, status_code=503)
        finally:
            self._under_way -= 1
        if reply.status == 200:
            self._count(label, _tokens(body))
        return Response(body, status_code=reply.status, media_type=reply.content_type)

    def _count(self, label: str, more: Usage) -> None:
        self._usage[label] = self.usage(label) + more


def _tokens(body: bytes) -> Usage:
    usage = json.loads(body)["usage"]
    return Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
