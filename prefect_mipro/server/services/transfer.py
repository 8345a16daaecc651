"""Export of a session as a file, and import of such a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from pydantic import ValidationError

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.exports import (
    EXPORT_FORMAT,
    EXPORT_VERSION,
    FirstLine,
    ImportReceipt,
    LastLine,
    Part,
)
from prefect_mipro.models.keys import DEFAULT_WORKSPACE
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.ids import Clock
from prefect_mipro.server.json_text import json_text
from prefect_mipro.server.services.creation import admit_models
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.privacy import Redaction
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.upstream.registry import Upstreams

ROWS_AT_ONCE = 500
# Each may hold a request and an answer of the largest size that is taken.
TRACES_AT_ONCE = 25

_ROW_PARTS = tuple(part for part in Part if part not in (Part.SESSION, Part.END))

R = TypeVar("R", bound=Record)


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


class Imports:
    """The imports of all sessions. A file comes in pieces, so none is ever whole in memory."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        redaction: Redaction,
        *,
        clock: Clock,
        new_secret: Callable[[], str],
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._redaction = redaction
        self._clock = clock
        self._new_secret = new_secret

    async def take(
        self,
        session_id: str,
        lines: Sequence[JsonObject],
        *,
        workspace: str = DEFAULT_WORKSPACE,
    ) -> ImportReceipt:
        """Take consecutive lines of a file, the first of which creates the session.

        Repeats do no harm, so that an import that was broken off begins again from the start.
        Raises Conflict where the session was here before, or at the end where lines lack;
        ConfigInvalid where this backend does not know its models.
        """
        complete = False
        for part, rows in groupby(lines, key=_part):
            told = list(rows)
            if part is Part.SESSION:
                await self._check_first(session_id, told[0])
            if part is Part.END:
                complete = bool(_parsed(LastLine, told[0]))
            await self._store.restore(
                session_id,
                part,
                self._redaction.rows(part, told),
                workspace=workspace,
                secret=self._new_secret(),
                digest_key=self._new_secret(),
                at=self._clock(),
            )
        return ImportReceipt(session_id=session_id, lines=len(lines), complete=complete)

    async def _check_first(self, session_id: str, line: JsonObject) -> None:
        first = _parsed(FirstLine, line)
        if first.format_version > EXPORT_VERSION:
            raise InputInvalid(
                f"the export has version {first.format_version} of the format, and this backend "
                f"knows {EXPORT_VERSION}; update it"
            )
        if first.session_id != session_id:
            raise InputInvalid(
                f"the export is of session {first.session_id!r}, not of {session_id!r}; "
                "a session keeps its id"
            )
        await admit_models(MiproConfig.parse(first.config), self._upstreams)


def _part(line: JsonObject) -> Part:
    try:
        return Part(str(line.get("part")))
    except ValueError:
        raise InputInvalid(
            f"a line of the import has the part {line.get('part')!r}; parts are {', '.join(Part)}"
        ) from None


def _parsed(model: type[R], line: JsonObject) -> R:
    try:
        return model.model_validate(line)
    except ValidationError as error:
        problem: Any = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise InputInvalid(
            f"the line is no export of a session: {field}: {problem['msg']}"
        ) from None
