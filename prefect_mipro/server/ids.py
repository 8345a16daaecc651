"""Where ids and timestamps come from. Services take them as arguments; these are the real ones."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
NewId = Callable[[str], str]

_HEX_BYTES = {"cand": 6, "baseline": 6}
# Of these there are many: beginning with the time, they stand side by side in an index.
_TIMED = frozenset({"rollout", "trace"})
# Nobody gains by guessing one of those, and the system's own chance takes longer.
_random_bits = random.Random(secrets.randbits(256)).getrandbits


def utc_now() -> datetime:
    """The present, aware of its zone."""
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """`cand_3f9a…`: unique over all sessions, safe in a path."""
    if kind in _TIMED:
        return f"{kind}_{time.time_ns() // 1_000:014x}{_random_bits(40):010x}"
    return f"{kind}_{secrets.token_hex(_HEX_BYTES.get(kind, 8))}"


def new_secret() -> str:
    """The part of a proxy URL that only its holder knows: 32 hexadecimal digits."""
    return secrets.token_hex(16)
