"""Answers that quote the key they were asked with: what comes after must not have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# A shorter word would be found in texts that mean something else.
SHORTEST_KEY = 8

# Headers that carry one have one of these in their name.
_KEEPERS = ("auth", "key", "token", "secret")


def keys_in(headers: Mapping[str, str]) -> tuple[bytes, ...]:
    """The keys that a request with these headers tells."""
    found = (
        value.removeprefix("Bearer ")
        for name, value in headers.items()
        if any(word in name.lower() for word in _KEEPERS)
    )
    return tuple(key.encode() for key in found if len(key) >= SHORTEST_KEY)


def without(keys: Iterable[bytes], body: bytes) -> bytes:
    """The body with a mark in the place of each key."""
    for key in keys:
        body = body.replace(key, b"***")
    return body
