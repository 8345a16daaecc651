"""Sessions that are deleted, with all that is known of them."""

from __future__ import annotations

from contextlib import suppress

from prefect_mipro.errors import Overloaded, SessionEnded
from prefect_mipro.models.sessions import DeletedSession, SessionState
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.store.interface import Store

# Deleted in one transaction, which no other one waits for long.
PIECE = 500


class Removal:
    """The deletions of all sessions."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def delete(self, session_id: str) -> DeletedSession:
        """Delete it in any state. Raises SessionNotFound, also for who comes second.

        It is cancelled first, and what it has much of goes piece by piece, so that other sessions
        are served meanwhile. A deletion that was broken off leaves a cancelled session without its
        past; another one ends it.
        """
        # One that is under import has no state to change yet.
        with suppress(SessionEnded, Overloaded):
            await self._store.set_state(
                session_id, SessionState.CANCELLED, at=self._clock(), stop_reason="it is deleted"
            )
        while await self._store.thin(session_id, limit=PIECE):
            pass
        await self._store.delete_session(session_id)
        return DeletedSession(session_id=session_id)
