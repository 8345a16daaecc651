"""The chat-completions proxy: any OpenAI client calls here, and a candidate answers.

Bare ASGI endpoints, because every call of every program passes through: the body is parsed once
and an event stream is handed on as it arrives.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import InputInvalid, MiproError
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.routes.dependencies import (
    backend_of,
    identifier,
    parse_json,
    read_body,
    short_text,
)
from prefect_mipro.server.routes.errors import (
    CANDIDATE_HEADER,
    PROXY_PREFIX,
    ROLLOUT_HEADER,
    log_failure,
    openai_error,
    short,
)
from prefect_mipro.server.services.calls import Call, Served

EVENT_STREAM = "text/event-stream"


class ChatCompletions:
    """`POST {online_url}[/{rollout_id}]/chat/completions`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        backend = backend_of(request)
        session = await _admitted(request)
        body = await read_body(request, limit_bytes=backend.max_body_bytes)
        call = _call(request, parse_chat(body))
        answer = _Answer(send)
        try:
            async with (
                _WhileConnected(receive) as connection,
                backend.rollouts.serve(session, call) as served,
            ):
                if served.content_type.startswith(EVENT_STREAM):
                    await answer.stream(served)
                else:
                    await answer.whole(served, await served.read())
                connection.served()
        except MiproError:
            if not answer.started:
                raise


class Models:
    """`GET {online_url}[/{rollout_id}]/models`: the session's policy model."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = await _admitted(Request(scope, receive))
        model = MiproConfig.parse(session.config).policy.model or session.session_id
        entry = {
            "id": model,
            "object": "model",
            "created": int(session.created_at.timestamp()),
            "owned_by": "prefect-mipro",
        }
        body = orjson.dumps({"object": "list", "data": [entry]})
        await Response(body, media_type="application/json")(scope, receive, send)


_PLACES = (PROXY_PREFIX + "{proxy_id}", PROXY_PREFIX + "{proxy_id}/{rollout_id}")
routes = [
    *(Route(f"{place}/chat/completions", ChatCompletions(), methods=["POST"]) for place in _PLACES),
    *(Route(f"{place}/models", Models(), methods=["GET"]) for place in _PLACES),
]


def parse_chat(body: bytes) -> ChatBody:
    """A chat-completions body, as far as its prompt must be understood. Raises InputInvalid."""
    chat = parse_json(body)
    if not isinstance(chat, dict):
        raise _malformed(f"the body is {short(chat)}, not a JSON object with messages")
    messages = chat.get("messages")
    if not isinstance(messages, list) or not messages:
        found = f"is {short(messages)}" if "messages" in chat else "is missing"
        raise _malformed(f"messages {found}; send a list with at least one message")
    for number, message in enumerate(messages):
        _check_message(f"messages[{number}]", message)
    return chat


def _check_message(place: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _malformed(f"{place} is {short(message)}, not an object")
    if not isinstance(message.get("role"), str):
        raise _malformed(f"{place}.role is {short(message.get('role'))}, not a word")
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _malformed(f"{place}.content is {short(content)}, neither text nor a list of parts")


def _malformed(message: str) -> InputInvalid:
    return InputInvalid(message, status=400)


async def _admitted(request: Request) -> Session:
    backend = backend_of(request)
    proxy_id = request.path_params["proxy_id"]
    return await backend.sessions.admit(
        identifier("the session id", proxy_id), key_accepted=backend.keys.accept(request.headers)
    )


def _call(request: Request, body: ChatBody) -> Call:
    """The call with what path, headers and query say about it, in this order."""
    headers, query = request.headers, request.query_params
    rollout_id = (
        request.path_params.get("rollout_id") or headers.get(ROLLOUT_HEADER) or query.get("cid")
    )
    candidate_id = headers.get(CANDIDATE_HEADER) or query.get("candidate_id")
    correlation_id = headers.get("x-correlation-id") or query.get("correlation_id")
    example_id = headers.get("x-mipro-example-id") or query.get("example_id")
    return Call(
        body=body,
        rollout_id=identifier("the rollout id", rollout_id) if rollout_id else None,
        candidate_id=identifier("the candidate id", candidate_id) if candidate_id else None,
        correlation_id=short_text("the correlation id", correlation_id) if correlation_id else None,
        example_id=short_text("the example id", example_id) if example_id else None,
    )


class _Answer:
    """What goes back to the caller. Once it has started, no other answer can."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def whole(self, served: Served, body: bytes) -> None:
        """The body at once."""
        await self._start(served, {"content-length": str(len(body))})
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, served: Served) -> None:
        """Each piece as it comes. A failure on the way becomes the last event."""
        await self._start(served, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        try:
            async for chunk in served.chunks():
                await self._send_piece(chunk)
        except MiproError as error:
            log_failure(error)
            await self._send_piece(b"\n\ndata: " + orjson.dumps(openai_error(error)) + b"\n\n")
            await self._end()
            raise
        await self._end()

    async def _send_piece(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _end(self) -> None:
        await self._send({"type": "http.response.body"})

    async def _start(self, served: Served, more: Mapping[str, str]) -> None:
        headers = {
            "content-type": served.content_type,
            CANDIDATE_HEADER: served.candidate_id,
            ROLLOUT_HEADER: served.rollout_id,
            **more,
        }
        if served.retry_after_seconds is not None:
            headers["retry-after"] = str(math.ceil(served.retry_after_seconds))
        self.started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": served.status,
                "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
            }
        )


class _WhileConnected:
    """Cancels its block when the client goes away, which cancels the upstream call with it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._served = False

    def served(self) -> None:
        """The answer is out: the client may go, and what is left to do is done."""
        self._served = True

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._cancel_when_gone())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._watch.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            return True
        return False

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._served and self._task is not None:
            self._gone = True
            self._task.cancel()
