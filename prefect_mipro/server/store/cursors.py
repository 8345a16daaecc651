"""Cursors: the key of a page's last row as opaque text."""

from __future__ import annotations

import base64
import json
from typing import Any

from prefect_mipro.errors import InputInvalid


def encode(*key: str | int) -> str:
    """The cursor that `decode` turns into `key` again."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode(cursor: str, *types: type) -> tuple[Any, ...]:
    """The key, one value of each type. Raises InputInvalid for a cursor that is not one of ours."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or [type(value) for value in key] != list(types):
        raise InputInvalid(
            f"cursor {cursor[:80]!r} is not one of this list; "
            "send the next_cursor of the page before, or none to start at the first page"
        )
    return tuple(key)
