"""Access: API keys, workspaces of sessions, and the secret URLs of their proxies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from pydantic import SecretStr

from prefect_mipro.errors import CandidateNotFound, KeyRejected, SessionNotFound
from prefect_mipro.models.keys import DEFAULT_WORKSPACE
from prefect_mipro.models.sessions import Session, SessionUrls
from prefect_mipro.server.ids import Clock
from prefect_mipro.server.services.session_cache import PromptCache, SessionCache
from prefect_mipro.server.store.store import Store

OLDEST_SECONDS = 1.0

# Known to whoever looks for secrets that were published: mipro_ and 64 hexadecimal digits.
PREFIX = "mipro_"

LONG_AGO = float("-inf")

_SECRET = re.compile(r"[0-9a-f]{32}")


def new_key() -> SecretStr:
    """A key of 256 random bits."""
    return SecretStr(f"{PREFIX}{secrets.token_hex(32)}")


def digest_of(key: SecretStr) -> str:
    """The digest under which a key is stored; unsalted, because nobody guesses 256 random bits."""
    return hashlib.sha256(key.get_secret_value().encode("utf-8", "replace")).hexdigest()


class _Known(NamedTuple):
    digest: str
    workspace: str


class Keys:
    """The keys that callers may use. Stored keys are at most `OLDEST_SECONDS` out of date.

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
    """The workspace of the first known key, found in a time that does not depend on the keys."""
    found = [
        workspace
        for digest in digests
        for known_digest, workspace in known
        if hmac.compare_digest(digest, known_digest)
    ]
    return found[0] if found else None


class Workspaces:
    """Ownership checks: a session of another workspace is reported as not found."""

    def __init__(self, store: Store, live: SessionCache, prompts: PromptCache) -> None:
        self._store = store
        self._live = live
        self._prompts = prompts

    async def check_session(self, session_id: str, workspace: str) -> None:
        """Raise SessionNotFound unless the session belongs to the workspace."""
        if await self._of(session_id) != workspace:
            raise SessionNotFound.of(session_id)

    async def check_candidate(self, candidate_id: str, workspace: str) -> None:
        """Raise CandidateNotFound unless the candidate's session belongs to the workspace."""
        candidate = await self._prompts.candidate(candidate_id)
        if await self._of(candidate.session_id) != workspace:
            raise CandidateNotFound.of(candidate_id)

    async def _of(self, session_id: str) -> str:
        held = self._live.held(session_id)
        return held.workspace if held else await self._store.workspace_of(session_id)


class ProxyUrls:
    """The proxy URLs of all sessions. Each holds a secret of its session."""

    def __init__(
        self,
        store: Store,
        live: SessionCache,
        *,
        public_url: str,
        clock: Clock,
        new_secret: Callable[[], str],
    ) -> None:
        self._store = store
        self._live = live
        self._public_url = public_url.rstrip("/")
        self._clock = clock
        self._new_secret = new_secret

    def of(self, session: Session) -> SessionUrls:
        """The URLs of the session's proxy."""
        url = f"{self._public_url}/api/mipro/v1/{session.session_id}.{session.proxy_secret}"
        return SessionUrls(
            online_url=url, proxy_url=url, chat_completions_url=f"{url}/chat/completions"
        )

    async def admit(
        self, proxy_id: str, *, callers_workspace: Callable[[], Awaitable[str]]
    ) -> Session:
        """The session that a proxy URL names.

        `{session_id}.{secret}` needs no key; the plain session id needs one of its workspace, which
        is asked for only then.
        """
        session_id, _, secret = proxy_id.rpartition(".")
        holds_secret = bool(session_id and _SECRET.fullmatch(secret))
        if holds_secret:
            with suppress(SessionNotFound):
                session = (await self._live.of(session_id)).session
                if hmac.compare_digest(session.proxy_secret, secret):
                    return session
        try:
            return await self._of_workspace(proxy_id, await callers_workspace())
        except (KeyRejected, SessionNotFound) as error:
            if isinstance(error, SessionNotFound) and not holds_secret:
                raise
            # Without the id: what looks like a secret may have been one.
            raise KeyRejected(
                "this proxy URL is not one of a session's; use the session's online_url, "
                "or send your key as 'Authorization: Bearer <key>'"
            ) from None

    async def _of_workspace(self, session_id: str, workspace: str) -> Session:
        session = (await self._live.of(session_id)).session
        if session.workspace != workspace:
            raise SessionNotFound.of(session_id)
        return session

    async def rotate(self, session_id: str) -> SessionUrls:
        """Give the session new URLs, and refuse the earlier ones.

        Here that is at once; on servers that share the database after `live.OLDEST_SECONDS`.
        """
        return self.of(
            await self._store.rotate_secret(session_id, self._new_secret(), at=self._clock())
        )
