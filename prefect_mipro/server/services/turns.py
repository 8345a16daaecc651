"""Turns: of the servers that share a database, one at a time proposes for a session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from prefect_mipro.errors import MiproError
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.store.store import Store

# The turn of a server that has died ends then; one that lives renews its own in time. Their clocks
# may differ by less than that. One that is set back frees the turns that it had taken.
TURN_SECONDS = 30.0
RENEWALS = 3
WAIT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Turns:
    """The turns of one server."""

    def __init__(
        self, store: Store, *, holder: str, clock: Clock, turn_seconds: float = TURN_SECONDS
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._turn_seconds = turn_seconds

    @asynccontextmanager
    async def of(self, session_id: str) -> AsyncIterator[bool]:
        """Whether the turn for that session is this server's; it is until the block ends."""
        if not self._store.shared:
            yield True
            return
        if not await self._take(session_id):
            yield False
            return
        renewing = asyncio.create_task(self._renew(session_id))
        try:
            yield True
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._store.give_turn_back(session_id, holder=self._holder)

    @asynccontextmanager
    async def waited_for(self, session_id: str) -> AsyncIterator[None]:
        """The turn for that session, as soon as no other server has it."""
        while True:
            async with self.of(session_id) as own:
                if own:
                    yield
                    return
            await asyncio.sleep(WAIT_SECONDS)

    async def _renew(self, session_id: str) -> None:
        held = True
        while held:
            await asyncio.sleep(self._turn_seconds / RENEWALS)
            try:
                held = await self._take(session_id)
            except MiproError as error:
                log.warning("turn_not_renewed", extra={"reason": type(error).__name__})
        # What two servers propose at once cannot be mixed up: each version's number is given once.
        log.warning("turn_lost", extra={"session_id": session_id})

    async def _take(self, session_id: str) -> bool:
        now = self._clock()
        until = now + timedelta(seconds=self._turn_seconds)
        return await self._store.take_turn(session_id, holder=self._holder, at=now, until=until)
