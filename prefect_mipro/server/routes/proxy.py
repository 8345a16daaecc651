"""The chat-completions proxy: any OpenAI client calls here, and a candidate answers.

Bare ASGI, reached before the routes of the API, because every call of every program passes through:
the body is parsed once and an event stream is handed on as it arrives.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import orjson
from pydantic import SecretStr
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prefect_mipro.errors import InputInvalid, MiproError, NotFound, NotReady
from prefect_mipro.models.base import VERSION_STEP
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.names import identifier, rollout_identifier, short_text
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.routes.bodies import parse_json, read_body, require_json_type
from prefect_mipro.server.routes.dependencies import (
    Backend,
    offered_keys,
)
from prefect_mipro.server.routes.errors import (
    CANDIDATE_HEADER,
    FALLBACK_HEADER,
    PROMPT_HEADER,
    PROXY_PREFIX,
    ROLLOUT_HEADER,
    error_response,
    log_failure,
    on_http_exception,
    on_unknown_error,
    openai_error,
    short,
)
from prefect_mipro.server.services.calls import Call, Served, prompt_word
from prefect_mipro.server.telemetry.calls import MeteredCall

# A client that goes away sooner is noticed then: short calls are over before, and to watch for it
# costs as much as to choose.
WATCHED_AFTER_SECONDS = 0.1

# Every digit as 0, and all else as a space.
_DIGITS = bytes(ord("0") if chr(byte).isdecimal() else ord(" ") for byte in range(256))
_NINETEEN_DIGITS = b"0" * 19

_CANDIDATE = CANDIDATE_HEADER.encode()
_ROLLOUT = ROLLOUT_HEADER.encode()
_PROMPT = PROMPT_HEADER.encode()
_FALLBACK = FALLBACK_HEADER.encode()


class Proxy:
    """`POST .../chat/completions` and `GET .../models` below `{online_url}[/{rollout_id}][/v1]`.

    As an ASGI app: it answers errors itself, in OpenAI's shape.
    """

    def __init__(self, backend: Callable[[], Backend]) -> None:
        self._backend = backend

    @staticmethod
    def serves(scope: Scope) -> bool:
        """Whether the request is for the proxy."""
        return scope["type"] == "http" and str(scope["path"]).startswith(PROXY_PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            match _steps(scope["path"]):
                case [proxy_id, "chat", "completions"] if proxy_id:
                    _require_method(scope, "POST")
                    await self._complete(proxy_id, None, scope, receive, send)
                case [proxy_id, rollout_id, "chat", "completions"] if proxy_id and rollout_id:
                    _require_method(scope, "POST")
                    await self._complete(proxy_id, rollout_id, scope, receive, send)
                case [proxy_id, "models", *names] | [proxy_id, _, "models", *names] if proxy_id:
                    _require_method(scope, "GET", "HEAD")
                    await self._show_models(proxy_id, "/".join(names), scope, receive, send)
                case [_, *steps]:
                    raise _not_served("/".join(steps), query=scope["query_string"])
        except MiproError as error:
            await error_response(Request(scope), error)(scope, receive, send)
        except HTTPException as error:
            answer = await on_http_exception(Request(scope), error)
            await answer(scope, receive, send)
        except Exception as error:
            with suppress(Exception):  # the answer may have begun
                answer = await on_unknown_error(Request(scope), error)
                await answer(scope, receive, send)
            raise

    async def _complete(
        self, proxy_id: str, rollout_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        backend = self._backend()
        given = _Given(scope)
        metered = backend.telemetry.call(scope["headers"])
        answer = _Answer(send, metered)
        try:
            with metered:
                # In a flood most calls end here, so nothing is done for them before.
                backend.serving.journal.require_room()
                session = await _admitted(backend, proxy_id, given)
                require_json_type(given.header(b"content-type") or "")
                body = await read_body(
                    given.header(b"content-length"), receive, limit_bytes=backend.max_body_bytes
                )
                call = _call(rollout_id, given, parse_chat(body), metered)
                with _WhileConnected(receive):
                    async with backend.serving.serve(session, call) as served:
                        if await served.is_stream():
                            await served.require_events()
                            await answer.stream(served)
                        else:
                            await answer.whole(served, await served.read())
        except MiproError:
            if not answer.started:
                raise
        except asyncio.CancelledError:
            # The server stops, and this call took longer than it waits.
            if not answer.started:
                raise _stopping() from None

    async def _show_models(
        self, proxy_id: str, name: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """The session's policy model: in a list, or by its name."""
        backend = self._backend()
        session = await _admitted(backend, proxy_id, _Given(scope))
        model = backend.sessions.policy_model(session)
        if name not in ("", model):
            raise NotFound(f"the model of this session is {model!r}, not {short(repr(name))}")
        entry = {
            "id": model,
            "object": "model",
            "created": int(session.created_at.timestamp()),
            "owned_by": "prefect-mipro",
        }
        body = orjson.dumps(entry if name else {"object": "list", "data": [entry]})
        await Response(body, media_type="application/json")(scope, receive, send)


def _steps(path: str) -> list[str]:
    """The steps of a path: session, rollout if it names one, and what is called.

    Many clients append `/v1` to any base URL, and some a second slash to one that ends in a slash.
    An empty step behind the session stays: the caller's rollout id was empty.
    """
    proxy_id, *steps = path.removeprefix(PROXY_PREFIX).rstrip("/").split("/")
    if steps[-2:] == ["chat", "completions"]:
        called = len(steps) - 2
    else:
        called = steps.index("models") if "models" in steps else 0
    before = [
        step
        for place, step in enumerate(steps[:called])
        if step != VERSION_STEP and (step or place == 0)
    ]
    return [proxy_id, *before, *steps[called:]]


def parse_chat(body: bytes) -> ChatBody:
    """A chat-completions body, as far as its prompt must be understood. Raises InputInvalid."""
    chat = parse_json(body)
    if _NINETEEN_DIGITS in body.translate(_DIGITS):
        # orjson makes floats of integers beyond 64 bits.
        chat = json.loads(body)
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


class _Given:
    """What a request says in its headers and its query; of repeated headers the first counts."""

    def __init__(self, scope: Scope) -> None:
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        query = scope["query_string"]
        self._query = QueryParams(query) if query else None

    def header(self, name: bytes) -> str | None:
        """The header of that name, in lower case."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    def either(self, header: bytes, parameter: str) -> str | None:
        """The header, else the parameter of the query, if it is not empty."""
        value = self._headers.get(header)
        if value:
            return value.decode("latin-1")
        return self._query.get(parameter) or None if self._query is not None else None


def _stopping() -> NotReady:
    return NotReady("the server is stopping, and the answer was not complete in time; call again")


def _not_served(path: str, *, query: bytes) -> NotFound:
    if query.endswith((b"chat/completions", b"models")):
        return NotFound(
            "the path of this call stands behind its query, as it does when a base URL has one; "
            "name the rollout in the path of the base URL, or in the client's default query"
        )
    return NotFound(
        "a session's URL serves chat/completions and models, also with a rollout id before them, "
        f"and not {short(repr(path))}; ask the model's own server for that"
    )


def _require_method(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        raise HTTPException(405, headers={"Allow": ", ".join(methods)})


async def _admitted(backend: Backend, proxy_id: str, given: _Given) -> Session:
    offered = given.header(b"authorization"), given.header(b"x-api-key")
    return await backend.urls.admit(
        identifier("the session id", proxy_id),
        callers_workspace=lambda: backend.keys.workspace_of(*offered_keys(*offered)),
    )


def _call(rollout_id: str | None, given: _Given, body: ChatBody, metered: MeteredCall) -> Call:
    """The call with what path, headers and query say about it, in this order."""
    rollout_id = rollout_id or given.either(_ROLLOUT, "cid")
    candidate_id = given.either(_CANDIDATE, "candidate_id")
    correlation_id = given.either(b"x-correlation-id", "correlation_id")
    example_id = given.either(b"x-mipro-example-id", "example_id")
    provider_key = given.header(b"x-provider-key")
    return Call(
        body=body,
        rollout_id=rollout_identifier(rollout_id) if rollout_id else None,
        candidate_id=identifier("the candidate id", candidate_id) if candidate_id else None,
        correlation_id=short_text("the correlation id", correlation_id) if correlation_id else None,
        example_id=short_text("the example id", example_id) if example_id else None,
        provider_key=SecretStr(provider_key) if provider_key else None,
        metered=metered,
    )


class _Answer:
    """The answer to the caller. Once it has started, no other answer can."""

    def __init__(self, send: Send, metered: MeteredCall) -> None:
        self._send = send
        self._metered = metered
        self.started = False

    async def whole(self, served: Served, body: bytes) -> None:
        """Send the whole body at once."""
        await self._start(served, (b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.body", "body": body})
        self._metered.finished()
        await _leave_the_machine()

    async def stream(self, served: Served) -> None:
        """Send each piece as it comes. A failure on the way becomes the last event."""
        unbuffered = (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")
        await self._start(served, *unbuffered, streaming=True)
        try:
            async for chunk in served.chunks():
                await self._send_piece(chunk)
        except MiproError as error:
            log_failure(error)
            await self._end_with(error)
            raise
        except asyncio.CancelledError:
            # By a server that stops. A caller who is gone reads nothing of it.
            await self._end_with(_stopping())
            raise
        await self._end()
        self._metered.finished()
        await _leave_the_machine()

    async def _send_piece(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _end_with(self, error: MiproError) -> None:
        """Send an error as the last event."""
        await self._send_piece(b"\n\ndata: " + orjson.dumps(openai_error(error)) + b"\n\n")
        await self._end()

    async def _end(self) -> None:
        await self._send({"type": "http.response.body"})

    async def _start(
        self, served: Served, *more: tuple[bytes, bytes], streaming: bool = False
    ) -> None:
        headers = [
            (b"content-type", served.content_type.encode("latin-1")),
            (_CANDIDATE, served.candidate_id.encode()),
            (_ROLLOUT, served.rollout_id.encode()),
            (_PROMPT, prompt_word(applied=served.prompt_applied).encode()),
            *more,
            *((name.encode(), value.encode("latin-1")) for name, value in served.headers.items()),
        ]
        if served.failed_candidate_id is not None:
            headers.append((_FALLBACK, served.failed_candidate_id.encode()))
        self.started = True
        self._metered.started(served.status, streaming=streaming)
        await self._send(
            {"type": "http.response.start", "status": served.status, "headers": headers}
        )


async def _leave_the_machine() -> None:
    """Let what was sent be written, which happens as the loop turns, before more is done."""
    await asyncio.sleep(0)


class _WhileConnected:
    """Cancels its block when the client goes away, which cancels the upstream call with it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._begin = loop.call_later(WATCHED_AFTER_SECONDS, self._begin_to_watch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._begin.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._gone and self._task is not None:
            self._task.uncancel()
            return kind is asyncio.CancelledError
        return False

    def _begin_to_watch(self) -> None:
        self._watch = asyncio.create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._gone = True
            self._task.cancel()
