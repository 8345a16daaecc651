"""Bodies of requests: how much of them is read, and which JSON is taken."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive

from prefect_mipro.errors import BodyTooLarge, InputInvalid
from prefect_mipro.server.routes.errors import short

DEEPEST_JSON = 64
# Ten megabytes of empty objects would take thirty times as much memory.
MOST_BRANCHES = 500_000
_GZIP = b"\x1f\x8b"


async def read_body(announced: str | None, receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole body, of which the Content-Length is `announced`.

    Raises BodyTooLarge as soon as that is known.
    """
    length = announced or "0"
    if not length.isdecimal() or len(length) > 18 or int(length) > limit_bytes:
        raise BodyTooLarge(_too_large(limit_bytes))
    pieces: list[bytes] = []
    left = limit_bytes
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InputInvalid("the connection ended before the body did", status=400)
        pieces.append(message.get("body", b""))
        left -= len(pieces[-1])
        if left < 0:
            raise BodyTooLarge(_too_large(limit_bytes))
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def require_json_type(content_type: str) -> None:
    """Raise InputInvalid for any other type: browsers let every page send some of those."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        found = short(repr(content_type)) if content_type else "missing"
        raise InputInvalid(f"the body's Content-Type is {found}; send application/json", status=415)


def parse_json(body: bytes) -> Any:
    """The JSON value: no NaN, no broken Unicode, not too deep or wide. Raises InputInvalid.

    Of keys that stand in an object twice the last one counts; nothing else is passed on.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if body.startswith(_GZIP):
            raise InputInvalid(
                "the body is compressed; send it as it is, without Content-Encoding", status=415
            ) from None
        raise InputInvalid(f"the body is not valid JSON: {error}", status=400) from None
    # Each level and each branch opens a bracket, so that most bodies need no walk.
    brackets = body.count(b"{") + body.count(b"[")
    if brackets > DEEPEST_JSON and isinstance(value, dict | list):
        _require_bounds(value)
    return value


def _require_bounds(value: Any) -> None:
    """Walks level by level, so that its own depth does not grow with the value's."""
    level = [value]
    left = MOST_BRANCHES
    for _ in range(DEEPEST_JSON + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        left -= len(level)
        if left < 0:
            raise InputInvalid(
                f"the body has more than {MOST_BRANCHES} objects and lists; send it in parts",
                status=400,
            )
        if not level:
            return
    raise InputInvalid(f"the body is nested more than {DEEPEST_JSON} levels deep", status=400)


def _too_large(limit_bytes: int) -> str:
    return (
        f"the body is larger than {limit_bytes} bytes; send less, "
        "or start the server with a larger --max-body-bytes"
    )
