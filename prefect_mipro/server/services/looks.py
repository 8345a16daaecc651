"""Looking at the evidence after rewards: one look at a time for each session."""

from __future__ import annotations

import asyncio
import logging
from weakref import WeakValueDictionary

from prefect_mipro.errors import StoreFailed
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.services.promotion import Promotion

log = logging.getLogger(__name__)


class Looks:
    """The looks at all sessions.

    Rewards that come while one is under way share the next: it sees all of them, and a flood of
    rewards costs no look each.
    """

    def __init__(self, live: Live, promotion: Promotion) -> None:
        self._live = live
        self._promotion = promotion
        self._next: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def look(self, session_id: str) -> None:
        """Return when what was rewarded by now has been looked at."""
        upcoming = self._next.get(session_id)
        if upcoming is None:
            upcoming = self._next[session_id] = asyncio.create_task(self._look(session_id))
        # Not this reward alone may wait for it.
        await asyncio.shield(upcoming)

    async def _look(self, session_id: str) -> None:
        turn = self._turns.get(session_id)
        if turn is None:
            turn = self._turns[session_id] = asyncio.Lock()
        async with turn:
            del self._next[session_id]
            try:
                await self._promotion.consider(await self._live.of(session_id))
            except StoreFailed as error:
                log.warning("evidence_not_considered", extra={"reason": error.message})
