"""Where ids and timestamps come from. Services take them as arguments; these are the real ones."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
NewId = Callable[[str], str]

_HEX_BYTES = {"cand": 6, "baseline": 6}


def utc_now() -> datetime:
    """The present, aware of its zone."""
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """`cand_3f9a…`: unguessable, unique over all sessions, safe in a path."""
    return f"{kind}_{secrets.token_hex(_HEX_BYTES.get(kind, 8))}"


def new_secret() -> str:
    """The part of a proxy URL that only its holder knows: 32 hexadecimal digits."""
    return secrets.token_hex(16)
