"""Keys quoted in answers, which are masked before anyone sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# A shorter word would be found in texts that mean something else.
SHORTEST_KEY = 8

# Headers that carry one have one of these in their name.
_KEEPERS = ("auth", "key", "token", "secret")


def keys_in(headers: Mapping[str, str]) -> tuple[bytes, ...]:
    """The keys in a request's headers."""
    found = (
        value.removeprefix("Bearer ")
        for name, value in headers.items()
        if any(word in name.lower() for word in _KEEPERS)
    )
    return tuple(key.encode() for key in found if len(key) >= SHORTEST_KEY)


def without(keys: Iterable[bytes], body: bytes) -> bytes:
    """The body with each key masked."""
    for key in keys:
        body = body.replace(key, b"***")
    return body
