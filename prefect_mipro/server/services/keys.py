"""Who calls: the keys of the settings, and those that are made and revoked meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pydantic import SecretStr

from prefect_mipro.errors import KeyRejected
from prefect_mipro.models.keys import DEFAULT_WORKSPACE
from prefect_mipro.server.store.store import Store

OLDEST_SECONDS = 1.0

# Known to whoever looks for secrets that were published: mipro_ and 64 hexadecimal digits.
PREFIX = "mipro_"

LONG_AGO = float("-inf")


def new_key() -> SecretStr:
    """A key of 256 random bits."""
    return SecretStr(f"{PREFIX}{secrets.token_hex(32)}")


def digest_of(key: SecretStr) -> str:
    """What is kept of a key. It has no salt: nobody guesses 256 random bits."""
    return hashlib.sha256(key.get_secret_value().encode("utf-8", "replace")).hexdigest()


class _Known(NamedTuple):
    digest: str
    workspace: str


class Keys:
    """The keys that callers may use. The stored ones are as they were `OLDEST_SECONDS` ago.

    While there is no key at all, and none was ever made, everybody may call if `open_to_all`: a
    server that no other machine reaches. Once the last key is revoked, nobody may.
    """

    def __init__(
        self,
        store: Store,
        given: Iterable[SecretStr],
        *,
        open_to_all: bool,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._given = tuple(_Known(digest_of(key), DEFAULT_WORKSPACE) for key in given)
        self._open_to_all = open_to_all
        self._timer = timer
        self._stored: tuple[_Known, ...] = ()
        self._any_was_made = False
        self._read_at = LONG_AGO
        self._reading = asyncio.Lock()

    async def workspace_of(self, *offered: str) -> str:
        """The workspace of the first key that is known. Raises KeyRejected."""
        digests = [digest_of(SecretStr(key)) for key in offered if key]
        # Those of the settings stay as they are: they wait for no database.
        workspace = _workspace(digests, self._given)
        if workspace is None:
            await self._refresh()
            workspace = _workspace(digests, self._stored)
        if workspace is None and not self._given and not self._any_was_made and self._open_to_all:
            return DEFAULT_WORKSPACE
        if workspace is None:
            raise KeyRejected(
                "the API key is missing or unknown; send one of the server's keys "
                "as 'Authorization: Bearer <key>'"
            )
        return workspace

    async def _refresh(self) -> None:
        async with self._reading:
            read_at = self._timer()
            if read_at - self._read_at < OLDEST_SECONDS:
                return
            keys = await self._store.keys()
            self._stored = tuple(
                _Known(key.digest, key.workspace) for key in keys if key.revoked_at is None
            )
            self._any_was_made = bool(keys)
            self._read_at = read_at


def _workspace(digests: Iterable[str], known: Iterable[_Known]) -> str | None:
    """The first one's that is known. How long it takes tells nothing of what is known."""
    found = [
        workspace
        for digest in digests
        for known_digest, workspace in known
        if hmac.compare_digest(digest, known_digest)
    ]
    return found[0] if found else None
