"""Errors as answers: one shape for the API, OpenAI's on the proxy, so that its clients raise."""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from prefect_mipro.errors import (
    BackendFailed,
    CompletionInvalid,
    InputInvalid,
    MiproError,
    NotFound,
)
from prefect_mipro.models.base import JsonObject, Record

PROXY_PREFIX = "/api/mipro/v1/"
CANDIDATE_HEADER = "x-mipro-candidate-id"
ROLLOUT_HEADER = "x-mipro-rollout-id"
PROMPT_HEADER = "x-mipro-prompt"
FALLBACK_HEADER = "x-mipro-fallback-from"
# Clients of the old SDK parse the first 4,096 characters of an error and no more.
LARGEST_ERROR_BYTES = 4_000
LONGEST_MESSAGE = 1_000
PROBLEMS_NAMED = 5

logger = logging.getLogger(__name__)


class ErrorAnswer(Record):
    """What every error of the API looks like; `error` is its class and `message` the way out."""

    error: str
    message: str
    code: str
    detail: Any = None


# What each call of the API may answer besides its own statuses.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The body is not JSON, or is nested too deeply",
        401: "The key is missing or unknown",
        403: "The request is a web page's, or names a host that this server does not answer to",
        404: "Nothing has this id",
        409: "The present state does not allow it",
        413: "The body is larger than the server accepts",
        415: "The body is not announced as JSON",
        422: "What was sent cannot be used; the message names it",
        429: "Too much at once: the header Retry-After says when to come back",
        500: "The backend failed in a way it did not expect; its log says how",
        503: "The database refuses the work or is out of reach",
    }.items()
}


def error_response(request: Request, error: MiproError) -> Response:
    """The answer that carries an error, with the headers that belong to it."""
    if _status(error) >= 500:
        log_failure(error)
    proxied = request.scope["path"].startswith(PROXY_PREFIX)
    return Response(
        orjson.dumps(openai_error(error)) if proxied else _api_error(error),
        status_code=_status(error),
        headers=_headers(error),
        media_type="application/json",
    )


def openai_error(error: MiproError) -> JsonObject:
    """The error as OpenAI's clients read it."""
    return {
        "error": {
            "message": short(error.message, LONGEST_MESSAGE),
            "type": _OPENAI_TYPES.get(_status(error), "server_error"),
            "code": type(error).__name__,
            "param": None,
        }
    }


async def on_mipro_error(request: Request, error: Exception) -> Response:
    """The answer to an error of ours: its class gives the status, and its name travels."""
    assert isinstance(error, MiproError)
    return error_response(request, error)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """The answer to a request that does not fit its model."""
    assert isinstance(error, RequestValidationError)
    problems = list(error.errors())
    sentences = [_sentence(problem) for problem in problems[:PROBLEMS_NAMED]]
    more = len(problems) - len(sentences)
    message = "; ".join([*sentences, *([f"and {more} more"] if more else [])])
    return error_response(request, InputInvalid(message))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """The answer where there is no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    path = short(_without_secret(request.url.path), 80)
    if error.status_code == 404:
        return error_response(request, NotFound(f"there is no {path} here; /docs lists all paths"))
    message = f"{request.method} is not possible on {path}; /docs lists what is"
    answer = error_response(request, InputInvalid(message, status=error.status_code))
    answer.headers.update(error.headers or {})
    if error.status_code == 405 and not request.scope["path"].startswith(PROXY_PREFIX):
        answer.headers["allow"] = ", ".join(_possible_methods(request))
    return answer


async def on_unknown_error(request: Request, error: Exception) -> Response:
    """The answer to an unexpected error: the log has its traceback, the caller no internals.

    The HTTP server ends the connection after it, which the answer has to say.
    """
    answer = error_response(
        request, BackendFailed("the backend failed in a way it did not expect; its log says how")
    )
    answer.headers["connection"] = "close"
    return answer


def log_failure(error: MiproError) -> None:
    """Log which part failed, without the path: those of the proxy hold secrets."""
    fields: JsonObject = {"error": type(error).__name__, "status": error.status}
    if not isinstance(error, CompletionInvalid):  # it quotes what the model said
        fields["reason"] = error.message
    if isinstance(error.detail, Mapping) and "rollout_id" in error.detail:
        fields["rollout_id"] = error.detail["rollout_id"]
    logger.warning("request failed", extra=fields)


def short(value: object, length: int = 80) -> str:
    """Text of a value, cut to a length fit for a message, without halves of characters."""
    text = value if isinstance(value, str) else _BRIEF.repr(value)
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return text if text.isascii() else text.encode(errors="replace").decode()


def _possible_methods(request: Request) -> list[str]:
    """All methods served on the request's path; the exception itself names one route's."""

    def is_served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return list(filter(is_served, _METHODS))


def _without_secret(path: str) -> str:
    """The path; of one of the proxy, what comes behind the session."""
    if not path.startswith(PROXY_PREFIX):
        return path
    return path.removeprefix(PROXY_PREFIX).partition("/")[2]


def _api_error(error: MiproError) -> bytes:
    name = type(error).__name__
    told = {"error": name, "message": short(error.message, LONGEST_MESSAGE), "code": name}
    try:
        body = orjson.dumps({**told, "detail": error.detail})
    except orjson.JSONEncodeError:
        body = b""
    return body if 0 < len(body) <= LARGEST_ERROR_BYTES else orjson.dumps(told)


def _status(error: MiproError) -> int:
    return error.status if 400 <= error.status <= 599 else 500


def _headers(error: MiproError) -> dict[str, str]:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    # Errors after the choice of a candidate name it in their detail.
    if isinstance(error.detail, Mapping) and "candidate_id" in error.detail:
        headers[CANDIDATE_HEADER] = str(error.detail["candidate_id"])
        headers[ROLLOUT_HEADER] = str(error.detail["rollout_id"])
        headers[PROMPT_HEADER] = str(error.detail["prompt"])
    return headers


def _sentence(problem: Mapping[str, Any]) -> str:
    where, *steps = (str(step) for step in problem["loc"])
    name = ".".join(steps) or f"the {where}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    found = problem["input"]
    if isinstance(found, Mapping) and problem["type"] == "value_error":
        # A rule about several fields: the text names them, and their values may be personal data.
        return f"{name}: {problem['ctx']['error']}"
    shown = short(repr(found) if isinstance(found, str) else found)
    return f"{name} is {shown}: {problem['msg']}"


# Python's own repr would write out all of a huge value, of which a line is shown.
_BRIEF = reprlib.Repr()
_BRIEF.maxdict = _BRIEF.maxlist = _BRIEF.maxtuple = 8
_BRIEF.maxstring = _BRIEF.maxother = 80
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
