"""Texts of calls and rewards that have been kept long enough: looked for now and then, and emptied.

A sweep goes in pieces, each a short transaction, with pauses between them. Each server of a shared
database sweeps by itself; what one has emptied the others pass by.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.store.interface import Store
from prefect_mipro.server.store.upkeep import Texts

SWEEP_SECONDS = 600.0
PAUSE_SECONDS = 0.02
PIECE = 200

log = logging.getLogger(__name__)


class Retention:
    """The sweeps of one server."""

    def __init__(
        self, store: Store, *, days: float, clock: Clock, pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        self._store = store
        self._kept_for = timedelta(days=days)
        self._clock = clock
        self._pause_seconds = pause_seconds
        # Where the last sweep ended: what comes in order is looked at once.
        self._cursors: dict[Texts, str | None] = dict.fromkeys(Texts)

    async def sweep(self) -> int:
        """Empty what is old by now; how many rows had texts."""
        rows = sum([await self._sweep(texts) for texts in Texts])
        if rows:
            log.info("texts_forgotten", extra={"rows": rows})
        return rows

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
