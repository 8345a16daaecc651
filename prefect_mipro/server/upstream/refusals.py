"""Refusals of a model's server, in the shape that OpenAI's clients read."""

from __future__ import annotations

import re
from typing import Any

import orjson

LONGEST_MESSAGE = 1_000
TYPE = "upstream_error"

# What servers call the text that tells what is wrong.
_MESSAGES = ("message", "detail", "msg", "error", "errors", "title")
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)


def openai_refusal(body: bytes, *, status: int) -> bytes:
    """The body as it is where its `error` is an object with a message, else one that has this.

    Whatever else an object says stays in it, unless it is nested too deeply to be read or written.
    """
    try:
        return _refusal(_answer(body), body, status=status)
    except (RecursionError, orjson.JSONEncodeError):
        return orjson.dumps({"error": _error({}, _plain_text(body), status=status)})


def _refusal(answer: Any, body: bytes, *, status: int) -> bytes:
    if not isinstance(answer, dict):
        said = _told(answer) or _plain_text(body)
        return orjson.dumps({"error": _error({}, said, status=status)})
    error = answer.get("error")
    own = error if isinstance(error, dict) else {}
    if isinstance(own.get("message"), str):
        return body if body.lstrip().startswith(b"{") else orjson.dumps(answer)
    told = own or answer
    return orjson.dumps({**answer, "error": own | _error(told, _told(told), status=status)})


def _answer(body: bytes) -> Any:
    """The JSON value: that of a stream's first event, the first of a list; None for no JSON."""
    text = body.strip()
    if text.startswith(b"data:"):
        text = text.removeprefix(b"data:").splitlines()[0]
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    # Gemini puts its error into a list.
    return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value


def _error(told: dict[str, Any], message: str, *, status: int) -> dict[str, Any]:
    silence = f"the model's server answered with status {status} and did not say why"
    return {
        "message": (message or silence)[:LONGEST_MESSAGE],
        "type": told.get("type") or TYPE,
        "param": told.get("param"),
        "code": told.get("code"),
    }


def _told(answer: Any) -> str:
    """The text of the error, wherever it stands; empty when there is none."""
    if isinstance(answer, list):
        return "; ".join(filter(None, map(_told, answer)))
    if isinstance(answer, dict):
        text = next(filter(None, (_told(answer.get(name)) for name in _MESSAGES)), "")
        place = answer.get("loc")  # FastAPI's, of a field
        return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, list) else text
    return answer if isinstance(answer, str) else ""


def _plain_text(body: bytes) -> str:
    """The text of a body, the title of a page; empty when there is none."""
    if body.lstrip().startswith(b"<"):
        title = _TITLE.search(body)
        body = title[1] if title else b""
    return " ".join(body.decode("utf-8", "replace").split())
