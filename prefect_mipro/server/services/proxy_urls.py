"""The URLs of sessions' proxies: what they are, who comes through them, and how they change."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

from prefect_mipro.errors import KeyRejected, SessionNotFound
from prefect_mipro.models.sessions import Session, SessionUrls
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.store.store import Store

_SECRET = re.compile(r"[0-9a-f]{32}")


class ProxyUrls:
    """The proxy URLs of all sessions. Each holds a secret of its session."""

    def __init__(
        self,
        store: Store,
        live: Live,
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
        """Where the session's proxy is."""
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
