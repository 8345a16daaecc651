"""Looking at the evidence after rewards: one look at a time for each session."""

from __future__ import annotations

import asyncio
import logging
from weakref import WeakValueDictionary

from prefect_mipro.errors import MiproError, StoreFailed
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.services.promotion import Promotion

log = logging.getLogger(__name__)


class Looks:
    """The looks at all sessions.

    Rewards that come while one is under way share the next: it sees all of them, and a flood of
    rewards costs no look each.
    """

    def __init__(self, live: Live, promotion: Promotion, journal: Journal) -> None:
        self._live = live
        self._promotion = promotion
        self._journal = journal
        self._failed: set[str] = set()
        self._begun: dict[str, asyncio.Task[None]] = {}
        self._next: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def begin(self, session_id: str) -> None:
        """Look in the background: a call of the session has failed because of its prompt."""
        self._failed.add(session_id)
        if session_id not in self._begun:
            self._begun[session_id] = asyncio.create_task(self._look_at_failures(session_id))

    async def settle(self) -> None:
        """Wait until no look at failures is under way."""
        await asyncio.gather(*self._begun.values(), return_exceptions=True)

    async def close(self) -> None:
        """Give up the looks that have begun in the background. Later ones see the same facts."""
        for task in self._begun.values():
            task.cancel()
        await self.settle()

    async def look(self, session_id: str) -> None:
        """Return when what was rewarded by now has been looked at."""
        upcoming = self._next.get(session_id)
        if upcoming is None:
            upcoming = self._next[session_id] = asyncio.create_task(self._look(session_id))
        # Not this reward alone may wait for it.
        await asyncio.shield(upcoming)

    async def _look_at_failures(self, session_id: str) -> None:
        """Until all of them have been looked at: those that come meanwhile share the next look."""
        try:
            while session_id in self._failed:
                self._failed.discard(session_id)
                await self._journal.flush()
                self._live.forget(session_id)
                await self.look(session_id)
        except MiproError as error:
            log.warning(
                "failures_not_considered",
                extra={"session_id": session_id, "reason": error.message},
            )
        finally:
            del self._begun[session_id]

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
