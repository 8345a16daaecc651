"""One operation's conversation without I/O: send, wait, repeat, decode, fail.

`exchange` is a generator. It yields a `Send` and wants the reply sent back in, or a `Wait` and
wants nothing; it returns the operation's value or raises an error of `prefect_mipro.errors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

import httpx
from pydantic import ValidationError

from prefect_mipro.client.operations import Operation
from prefect_mipro.errors import (
    BODY_SNIPPET_CHARACTERS,
    AnswerInvalid,
    BackendUnreachable,
    InputInvalid,
    MiproError,
    error_class,
)
from prefect_mipro.models.base import JsonObject
from prefect_mipro.transport import retry_after_seconds

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5
# A Retry-After beyond two minutes is a refusal, not a delay.
LONGEST_WAIT_SECONDS = 120.0

_PASSING_STATUSES = frozenset({BackendUnreachable.default_status, 429, 502, 503, 504})
_HIDDEN_KEY = "[key]"
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Send:
    """A request, ready but for the backend's address and the key."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    content: bytes | None


@dataclass(frozen=True)
class Wait:
    """A pause before the next attempt."""

    seconds: float


Reply: TypeAlias = httpx.Response | httpx.RequestError
Exchange: TypeAlias = Generator[Send | Wait, Reply | None, T]


def exchange(operation: Operation[T], *, jitter: Callable[[], float], key: str = "") -> Exchange[T]:
    """Carry out `operation`.

    `jitter` draws from [0, 1) and spreads the repeats of many clients. `key` is kept out of every
    error, should the backend's answer quote it.
    """
    send = _request(operation)
    attempts = ATTEMPTS if operation.repeatable else 1
    attempt = 1
    while True:
        reply = yield send
        if isinstance(reply, httpx.Response) and reply.is_success:
            return _value(operation, reply, send, key)
        error = _failure(reply, send, key)
        if attempt == attempts or not _passing(error):
            raise error
        yield Wait(max(_pause(attempt, jitter()), error.retry_after_seconds or 0.0))
        attempt += 1


def _request(operation: Operation[object]) -> Send:
    headers = dict(operation.headers)
    content = None
    if operation.body is not None:
        headers["Content-Type"] = "application/json"
        content = _encoded(operation.body)
    return Send(operation.method, operation.path, operation.query, headers, content)


def _encoded(body: JsonObject) -> bytes:
    try:
        plain = _plain(body, "body")
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise InputInvalid("the body is nested too deeply, or contains itself") from None
    except UnicodeEncodeError as error:
        raise InputInvalid(f"the body has text that is not Unicode: {error.reason}") from None


def _plain(value: Any, path: str) -> Any:
    """`value` in JSON's own types. NaN and infinity, which JSON lacks, become null."""
    match value:
        case None | bool() | str():
            return value
        case Integral():
            return int(value)
        case Real():
            return float(value) if math.isfinite(value) else None
        case list() | tuple():
            return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
        case Mapping():
            return {_name(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
        case _:
            raise InputInvalid(f"{path} is of type {type(value).__name__}, which JSON cannot carry")


def _name(key: object, path: str) -> str:
    if isinstance(key, str):
        return key
    raise InputInvalid(f"{path} has the key {key!r}; JSON objects have text keys only")


def _value(operation: Operation[T], reply: httpx.Response, send: Send, key: str) -> T:
    if operation.heard:
        operation.heard(reply.headers)
    try:
        answer = reply.json()
    except (ValueError, RecursionError):
        found = "an answer that is not JSON" if reply.content.strip() else "an empty answer"
        raise _broken_promise(f"{found} where a JSON object was due", reply, send, key) from None
    if not isinstance(answer, dict):
        found = f"a JSON {type(answer).__name__} where an object was due"
        raise _broken_promise(found, reply, send, key)
    try:
        return operation.answer(answer)
    except ValidationError as problem:
        fields = ", ".join(".".join(map(str, error["loc"])) for error in problem.errors()[:5])
        found = f"an answer that is no {problem.title} ({fields} missing or unusable)"
        raise _broken_promise(found, reply, send, key) from None


def _broken_promise(found: str, reply: httpx.Response, send: Send, key: str) -> AnswerInvalid:
    return AnswerInvalid(
        f"{send.method} got {found}; is this the address of the backend?",
        status=reply.status_code,
        url=str(reply.request.url),
        body_snippet=_snippet(reply, key),
    )


def _failure(reply: Reply | None, send: Send, key: str) -> MiproError:
    if isinstance(reply, httpx.Response):
        return _refusal(reply, send, key)
    reason = str(reply) or type(reply).__name__
    return BackendUnreachable(
        f"{send.method} got no answer ({reason}); is the backend running, and is this its address?",
        url=str(reply.request.url) if reply else send.path,
    )


def _refusal(reply: httpx.Response, send: Send, key: str) -> MiproError:
    snippet = _snippet(reply, key)
    body = _parsed(snippet)
    name, message = _words(body)
    if reply.has_redirect_location:
        message = f"the backend redirects to {reply.headers['location']}; give its own address"
    if not message:
        said = " ".join(snippet.split())[:_SHOWN_CHARACTERS]
        message = f"{send.method} was answered with {reply.status_code} {reply.reason_phrase}"
        message = f"{message}: {said}" if said else message
    return error_class(name, status=reply.status_code)(
        message,
        detail=body,
        status=reply.status_code,
        url=str(reply.request.url),
        body_snippet=snippet,
        retry_after_seconds=retry_after_seconds(
            reply.headers.get("retry-after"), sent=reply.headers.get("date")
        ),
    )


def _words(body: Any) -> tuple[str | None, str]:
    """The error class and the message that a body names: ours, OpenAI's or FastAPI's shape."""
    match body:
        case {"error": {"message": str(message), **rest}}:
            code = rest.get("code")
            return code if isinstance(code, str) else None, message
        case {"error": str(name), "message": str(message)}:
            return name, message
        case {"error": str(message)} | {"message": str(message)} | {"detail": str(message)}:
            return None, message
        case {"detail": [{"msg": str(message), "loc": list(steps)}, *_]}:
            return None, f"{'.'.join(map(str, steps))}: {message}"
        case _:
            return None, ""


def _snippet(reply: httpx.Response, key: str) -> str:
    text = reply.text.replace(key, _HIDDEN_KEY) if key else reply.text
    return text[:BODY_SNIPPET_CHARACTERS]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _passing(error: MiproError) -> bool:
    """Whether the same request may succeed a little later."""
    wait_seconds = error.retry_after_seconds or 0.0
    return error.status in _PASSING_STATUSES and wait_seconds <= LONGEST_WAIT_SECONDS


def _pause(attempt: int, jitter: float) -> float:
    return FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1) * (0.5 + 0.5 * jitter)
