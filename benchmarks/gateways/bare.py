"""The physical limit of our stack: a pass-through that does nothing else, in Starlette and aiohttp.

    python -m benchmarks.gateways.bare --upstream http://127.0.0.1:9000/v1 --port 9001

Server, framework and client library are those of `prefect_mipro.server`: uvicorn with uvloop and
httptools, Starlette, aiohttp. The body goes to the upstream as it came, and the answer back as it
comes. No route, key, choice, pin, rewriting or record.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.gateways.payloads import EVENT_STREAM

MOST_CONNECTIONS = 1_000


def pass_through(upstream: str) -> Starlette:
    """The app."""
    url = f"{upstream}/chat/completions"

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, aiohttp.ClientSession]]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": "identity", "content-type": "application/json"},
        ) as session:
            yield {"session": session}

    async def chat(request: Request) -> Response:
        session: aiohttp.ClientSession = request.state.session
        answer = await session.post(url, data=await request.body(), allow_redirects=False)
        media_type = answer.headers["content-type"]
        if not media_type.startswith(EVENT_STREAM):
            async with answer:
                body = await answer.read()
            return Response(body, status_code=answer.status, media_type=media_type)
        return StreamingResponse(
            _pieces(answer), status_code=answer.status, headers={"content-type": media_type}
        )

    async def health(request: Request) -> Response:
        return Response()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/health", health),
        ],
        lifespan=lifespan,
    )


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        while piece := await answer.content.readany():
            yield piece


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        pass_through(options.upstream),
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
    )


if __name__ == "__main__":
    main()
