"""Sessions that are deleted, with all that is known of them."""

from __future__ import annotations

import logging
from contextlib import suppress

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.sessions import DeletedSession
from prefect_mipro.server.store.store import Store

# Deleted in one transaction, which no other one waits for long.
PIECE = 500
# How often deletions are looked for that were broken off, here or by another server.
FINISH_SECONDS = 60.0

log = logging.getLogger(__name__)


class Removal:
    """The deletions of all sessions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def delete(self, session_id: str) -> DeletedSession:
        """Delete a session in any state. Raises SessionNotFound, for a second caller too.

        The session is found by nobody from its beginning on. Rows go piece by piece, so that other
        sessions are served meanwhile. What is broken off is left to `finish`.
        """
        await self._store.begin_deletion(session_id)
        await self._finish(session_id)
        return DeletedSession(session_id=session_id)

    async def finish(self) -> None:
        """End the deletions that have begun."""
        for session_id in await self._store.begun_deletions():
            await self._finish(session_id)
            log.info("deletion_finished", extra={"session_id": session_id})

    async def _finish(self, session_id: str) -> None:
        with suppress(SessionNotFound):  # another server was first
            while await self._store.thin(session_id, limit=PIECE):
                pass
            await self._store.delete_session(session_id)
