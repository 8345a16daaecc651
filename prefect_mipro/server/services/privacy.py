"""Redaction of texts before they are stored, and retention: their removal once they are old."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect_mipro.config import MiproConfig, TraceContent
from prefect_mipro.errors import Overloaded, SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.rollouts import Reward, Trace
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.ids import Clock
from prefect_mipro.server.services.session_cache import SessionCache
from prefect_mipro.server.store.records import Texts
from prefect_mipro.server.store.store import Store

# In the place of what went wrong with a call: that it did stays to be seen.
NOT_KEPT = "not kept"
DIGEST_PREFIX = "hmac-sha256:"
DIGEST_CHARACTERS = 32
EXAMPLE_KEYS = ("example_id", "seed")

_WARNING = (
    "no texts of traces and rewards are kept (trace_content is 'off'), so nothing is learned from "
    "what was said: no demonstrations from traffic, and proposals that know the prompts and the "
    "rewards only"
)

SWEEP_SECONDS = 600.0
PAUSE_SECONDS = 0.02
PIECE = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Redaction:
    """Redaction by the server's setting. A session's config may keep less, never more."""

    content: TraceContent = TraceContent.FULL

    def keeps_all(self, config: MiproConfig) -> bool:
        """Whether the session's texts are kept."""
        return TraceContent.OFF not in (self.content, config.mipro.trace_content)

    def warnings(self, config: MiproConfig) -> list[str]:
        """Warnings about what the session cannot learn from redacted texts."""
        return [] if self.keeps_all(config) else [_WARNING]

    def trace(self, trace: Trace, config: MiproConfig) -> Trace:
        """The trace as it may be kept. Nothing in it is an example to learn from."""
        if self.keeps_all(config):
            return trace
        return trace.model_copy(update=_emptied_trace(dict(trace)))

    def reward(self, reward: Reward, config: MiproConfig) -> Reward:
        """The reward as it may be kept."""
        if self.keeps_all(config):
            return reward
        return reward.model_copy(update=_emptied_reward(dict(reward)))

    def rows(self, part: Part, rows: Sequence[JsonObject]) -> Sequence[JsonObject]:
        """Rows of an export as they may be kept. What its config asks for was done where it ran."""
        if self.content is TraceContent.FULL:
            return rows
        match part:
            case Part.TRACE:
                return [{**row, **_emptied_trace(row)} for row in rows]
            case Part.REWARD:
                return [{**row, **_emptied_reward(row)} for row in rows]
            case Part.ROLLOUT:
                return [{**row, "example_trace_id": None} for row in rows]
            case _:
                return rows


def digest(session: Session, text: str) -> str:
    """A keyed digest of the text, which stands in for it in the session's events.

    The HMAC's key is the session's own, is in no answer and no export, and is deleted with the
    session.
    """
    made = hmac.new(session.digest_key.encode(), text.encode("utf-8", "replace"), hashlib.sha256)
    return f"{DIGEST_PREFIX}{made.hexdigest()[:DIGEST_CHARACTERS]}"


def _emptied_trace(values: Mapping[str, Any]) -> JsonObject:
    """The fields of a trace that change."""
    return {
        "messages": (),
        "response": None,
        # Of these examples are made.
        "input": "",
        "output": "",
        "error": NOT_KEPT if values.get("error") else "",
        "unapplied_reason": NOT_KEPT if values.get("unapplied_reason") else "",
    }


def _emptied_reward(values: Mapping[str, Any]) -> JsonObject:
    """The fields of a reward that change."""
    told = values.get("metadata")
    metadata = told if isinstance(told, Mapping) else {}
    kept = {name: metadata[name] for name in EXAMPLE_KEYS if name in metadata}
    return {"feedback": None, "expected": None, "artifact": None, "metadata": kept or None}


class Retention:
    """Retention: texts are kept for `traces_days`, rows for `rollouts_days`.

    Without a number of days texts, or rows, are kept for good.
    """

    def __init__(
        self,
        store: Store,
        live: SessionCache,
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
        """Empty and remove what has become old, and give free space back.

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
        """Give free pages back. Returns how many."""
        pages = 0
        while piece := await self._store.give_back_space():
            pages += piece
            await asyncio.sleep(self._pause_seconds)
        return pages

    async def _remove(self, kept_for: timedelta) -> int:
        """Remove old rows. Returns how many."""
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
