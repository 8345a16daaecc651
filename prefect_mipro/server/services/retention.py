"""What has been kept long enough: texts of calls and rewards are emptied, old rows are removed.

A sweep goes in pieces, each a short transaction, with pauses between them. Each server of a shared
database sweeps by itself; what one has done the others pass by.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta

from prefect_mipro.errors import Overloaded, SessionNotFound
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.store.records import Texts
from prefect_mipro.server.store.store import Store

SWEEP_SECONDS = 600.0
PAUSE_SECONDS = 0.02
PIECE = 200

log = logging.getLogger(__name__)


class Retention:
    """The sweeps of one server: what is kept for `traces_days`, and what for `rollouts_days`.

    Without a number of days texts, or rows, are kept for good.
    """

    def __init__(
        self,
        store: Store,
        live: Live,
        *,
        traces_days: float | None = None,
        rollouts_days: float | None = None,
        clock: Clock,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._store = store
        self._live = live
        self._texts_kept_for = None if traces_days is None else timedelta(days=traces_days)
        self._rows_kept_for = None if rollouts_days is None else timedelta(days=rollouts_days)
        self._clock = clock
        self._pause_seconds = pause_seconds
        # Where the last sweep ended: what comes in order is looked at once.
        self._cursors: dict[Texts, str | None] = dict.fromkeys(Texts)

    async def sweep(self) -> int:
        """Remove and empty what is old by now, and give back what is free in the database.

        Returns how many rows were removed or emptied.
        """
        removed = forgotten = 0
        if self._rows_kept_for is not None:
            removed = await self._remove(self._rows_kept_for)
        if self._texts_kept_for is not None:
            forgotten = sum(
                [await self._forget_texts(texts, self._texts_kept_for) for texts in Texts]
            )
        pages = await self._give_back_space()
        if removed or forgotten or pages:
            fields = {"rows_removed": removed, "texts_forgotten": forgotten, "pages_freed": pages}
            log.info("retention", extra=fields)
        return removed + forgotten

    async def _forget_texts(self, texts: Texts, kept_for: timedelta) -> int:
        before = self._clock() - kept_for
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

    async def _give_back_space(self) -> int:
        """Give free pages back; how many."""
        pages = 0
        while piece := await self._store.give_back_space():
            pages += piece
            await asyncio.sleep(self._pause_seconds)
        return pages

    async def _remove(self, kept_for: timedelta) -> int:
        """Remove old rows; how many."""
        rows = 0
        for session_id in await self._store.session_ids():
            # One that is being imported or deleted is left alone.
            with suppress(Overloaded, SessionNotFound):
                rows += await self._remove_of(session_id, kept_for)
                await self._empty_demonstrations(session_id, kept_for)
        return rows

    async def _remove_of(self, session_id: str, kept_for: timedelta) -> int:
        rows, now = 0, self._clock()
        while True:
            piece = await self._store.remove_old(
                session_id, before=now - kept_for, limit=PIECE, at=now
            )
            if not piece.rows:
                return rows
            rows += piece.rows
            self._live.forget_pins(piece.baseline_id, piece.rollout_ids)
            await asyncio.sleep(self._pause_seconds)

    async def _empty_demonstrations(self, session_id: str, kept_for: timedelta) -> None:
        """Empty old sets that show calls of the traffic, and retire their candidates.

        What the caller marked as safe to show stays.
        """
        now = self._clock()
        old = await self._store.unmarked_demonstrations(session_id, before=now - kept_for)
        if old:
            withdrawal = await self._store.empty_levers(
                session_id, old, at=now, reason="it shows calls that are kept no longer"
            )
            fields = {
                "session_id": session_id,
                "demonstrations": sorted(version for _, version in old),
                "candidates": list(withdrawal.candidate_ids),
            }
            log.info("demonstrations emptied", extra=fields)
