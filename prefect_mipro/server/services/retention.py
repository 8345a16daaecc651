"""Texts of calls and rewards that have been kept long enough: looked for now and then, and emptied.

A sweep goes in pieces, each a short transaction, with pauses between them. Each server of a shared
database sweeps by itself; what one has emptied the others pass by.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from prefect_mipro.errors import MiproError
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.store.interface import Store
from prefect_mipro.server.store.upkeep import Texts

EVERY_SECONDS = 600.0
PAUSE_SECONDS = 0.02
PIECE = 200

log = logging.getLogger(__name__)


class Retention:
    """The sweeps of one server."""

    def __init__(
        self,
        store: Store,
        *,
        days: float,
        clock: Clock,
        every_seconds: float = EVERY_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._store = store
        self._kept_for = timedelta(days=days)
        self._clock = clock
        self._every_seconds = every_seconds
        self._pause_seconds = pause_seconds
        # Where the last sweep ended: what comes in order is looked at once.
        self._cursors: dict[Texts, str | None] = dict.fromkeys(Texts)
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Sweep now, and every ten minutes until it is closed."""
        self._task = asyncio.create_task(self._sweep_for_ever())

    async def close(self) -> None:
        """End the sweep under way; another server, or the next start, goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self) -> int:
        """Empty what is old by now; how many rows had texts."""
        return sum([await self._sweep(texts) for texts in Texts])

    async def _sweep(self, texts: Texts) -> int:
        before = self._clock() - self._kept_for
        rows = 0
        # Rewards come in no order: each sweep looks at all of them.
        cursor = None if texts is Texts.REWARDS else self._cursors[texts]
        while True:
            piece = await self._store.forget_texts(texts, before=before, limit=PIECE, cursor=cursor)
            rows += piece.rows
            if piece.cursor is None:
                return rows
            cursor = self._cursors[texts] = piece.cursor
            await asyncio.sleep(self._pause_seconds)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                rows = await self.sweep()
            except MiproError as error:
                # The database is full or away: the next sweep finds what is left.
                log.warning("retention_failed", extra={"error": type(error).__name__})
            else:
                if rows:
                    log.info("texts_forgotten", extra={"rows": rows})
            await asyncio.sleep(self._every_seconds)
