"""Sessions as JSON lines: all that is known of one, read page by page while it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import EXPORT_FORMAT, EXPORT_VERSION, Part
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.json_text import json_text
from prefect_mipro.server.services.identity import Clock
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.store.store import Store

ROWS_AT_ONCE = 500
# Each may hold a request and an answer of the largest size that is taken.
TRACES_AT_ONCE = 25

_ROW_PARTS = tuple(part for part in Part if part not in (Part.SESSION, Part.END))


class Exports:
    """The exports of all sessions."""

    def __init__(self, store: Store, journal: Journal, *, clock: Clock) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock

    async def lines(self, session_id: str, *, traces: bool = True) -> AsyncIterator[bytes]:
        """The session's lines, several at a time. Raises SessionNotFound before the first.

        No more than a page of them is in memory. Without `traces` no line holds what was said.
        """
        session = await self._store.session(session_id)
        await self._journal.flush()
        return self._lines(session, traces=traces)

    async def _lines(self, session: Session, *, traces: bool) -> AsyncIterator[bytes]:
        head = {
            "format": EXPORT_FORMAT,
            "format_version": EXPORT_VERSION,
            "exported_at": self._clock().isoformat(),
        }
        (row,) = (await self._store.part(session, Part.SESSION, limit=1)).items
        yield _encoded(Part.SESSION, [{**head, **row}])
        counts: Counter[Part] = Counter({Part.SESSION: 1})
        for part in _ROW_PARTS:
            if part is Part.TRACE and not traces:
                continue
            async for rows in self._pages(session, part):
                counts[part] += len(rows)
                yield _encoded(part, rows)
        yield _encoded(Part.END, [{"lines": {str(part): counts[part] for part in counts}}])

    async def _pages(self, session: Session, part: Part) -> AsyncIterator[tuple[JsonObject, ...]]:
        limit = TRACES_AT_ONCE if part is Part.TRACE else ROWS_AT_ONCE
        page = await self._store.part(session, part, limit=limit)
        yield page.items
        while page.next_cursor is not None:
            page = await self._store.part(session, part, limit=limit, cursor=page.next_cursor)
            yield page.items


def _encoded(part: Part, rows: Iterable[JsonObject]) -> bytes:
    return "".join(json_text({"part": part, **row}) + "\n" for row in rows).encode()
