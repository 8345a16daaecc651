"""Removal of data: what one person or rollout has left in a session, and whole sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import LeverName, LeverVersion
from prefect_mipro.models.rollouts import user_of
from prefect_mipro.models.sessions import (
    DeletedSession,
    ForgetReport,
    ForgetRequest,
    ForgetSubject,
    Session,
)
from prefect_mipro.optimizer.copies import Copies
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.privacy import digest
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.session_cache import OLDEST_SECONDS, PromptCache, SessionCache
from prefect_mipro.server.store.records import ForgetOrder, TraceableReward
from prefect_mipro.server.store.store import Store

# Rows of one transaction, which no call waits for long.
REMOVED_AT_ONCE = 100
READ_AT_ONCE = 500
COMPARED_AT_ONCE = 500
PAUSE_SECONDS = 0.005

VersionKey = tuple[LeverName, int]

# Deleted in one transaction, which no other one waits for long.
PIECE = 500
# How often deletions are looked for that were broken off, here or by another server.
FINISH_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass
class _Found:
    """What a subject has left in a session, but for its rows of calls and events."""

    rollout_ids: set[str] = field(default_factory=set)
    pinned: int = 0
    calls: int = 0
    versions: set[VersionKey] = field(default_factory=set)


class Forgetting:
    """Requests to forget, for all sessions.

    What is counted stays counted: rollouts, rewards, calls and their sums, for the session, its
    candidates, blocks and examples. Rows and texts go. A request is stored before anything else is
    done, and one that is broken off is taken up again by `finish`.
    """

    def __init__(
        self,
        store: Store,
        prompts: PromptCache,
        live: SessionCache,
        beliefs: Beliefs,
        proposals: Proposals,
        journal: Journal,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._live = live
        self._beliefs = beliefs
        self._proposals = proposals
        self._journal = journal
        self._clock = clock
        self._new_id = new_id
        self._under_way: set[str] = set()

    async def forget(self, session_id: str, request: ForgetRequest) -> ForgetReport:
        """Forget all of one subject, in any state of the session. Raises SessionNotFound.

        Returns when it is done: the champion is served without it from the first piece on.
        """
        order = ForgetOrder(
            request_id=self._new_id("forget"),
            session_id=session_id,
            subject=request.subject,
            value=request.value,
            requested_at=self._clock(),
        )
        if request.dry_run:
            return await self._foretell(order)
        await self._store.begin_forgetting(order)
        return await self._carry_out(order)

    async def finish(self) -> None:
        """Carry out requests that were interrupted."""
        for order in await self._store.begun_forgettings():
            if order.request_id not in self._under_way:
                with suppress(SessionNotFound):  # it was deleted as a whole
                    await self._carry_out(order)

    async def _foretell(self, order: ForgetOrder) -> ForgetReport:
        session = await self._store.session(order.session_id)
        await self._journal.flush()
        levers = await self._store.levers(session.session_id)
        found = await self._find(session, order, levers)
        going = [
            candidate
            for candidate in await self._store.candidates(session.session_id)
            if candidate.active and _holds_any(candidate, found, levers)
        ]
        ids = tuple(candidate.candidate_id for candidate in going)
        champion_id = session.champion_id
        return ForgetReport(
            session_id=session.session_id,
            subject=order.subject,
            dry_run=True,
            rollouts=found.pinned,
            calls=found.calls,
            lever_versions=_named(found),
            retired_candidates=ids,
            champion_candidate_id=(
                await self._store.successor(session.session_id, ids)
                if champion_id in ids
                else champion_id
            ),
        )

    async def _carry_out(self, order: ForgetOrder) -> ForgetReport:
        self._under_way.add(order.request_id)
        try:
            # A round of proposals would make new demonstrations of what is about to go.
            async with self._proposals.paused(order.session_id):
                report = await self._forget(order)
        finally:
            self._under_way.discard(order.request_id)
        # Others may take the places of the candidates that are gone.
        self._proposals.consider(order.session_id)
        return report

    async def _forget(self, order: ForgetOrder) -> ForgetReport:
        session = await self._store.session(order.session_id)
        await self._journal.flush()
        levers = await self._store.levers(session.session_id)
        found = await self._find(session, order, levers)
        withdrawal = await self._store.empty_levers(
            session.session_id,
            found.versions,
            at=self._clock(),
            reason=f"a text that was shown is forgotten at the request for one {order.subject}",
        )
        self._prompts.forget_prompts()
        self._beliefs.forget(session.session_id)
        if self._store.shared and withdrawal.candidate_ids:
            # By then the other servers have read the session again, and serve them no more.
            await asyncio.sleep(OLDEST_SECONDS)
        await self._remove(session, order, found.rollout_ids)
        told = {
            "subject_digest": digest(session, order.value),
            "lever_versions": list(_named(found)),
            "candidates": list(withdrawal.candidate_ids),
        }
        ended = await self._store.end_forgetting(order, data=told, at=self._clock()) or order
        if self._store.shared and ended.rollouts:
            # By then the other servers know that a call of a removed rollout begins another one.
            await asyncio.sleep(OLDEST_SECONDS)
        report = ForgetReport(
            session_id=session.session_id,
            subject=order.subject,
            dry_run=False,
            rollouts=ended.rollouts,
            calls=ended.calls,
            lever_versions=_named(found),
            retired_candidates=withdrawal.candidate_ids,
            champion_candidate_id=withdrawal.champion_id,
        )
        log.info(
            "forgotten",
            extra={
                "session_id": session.session_id,
                "subject": order.subject,
                "rollouts": report.rollouts,
                "calls": report.calls,
                "candidates": len(report.retired_candidates),
            },
        )
        return report

    async def _find(
        self, session: Session, order: ForgetOrder, levers: Sequence[LeverVersion]
    ) -> _Found:
        found = _Found()
        value = order.value.strip()
        texts: list[str] = []
        answers: list[str] = []
        said_of_others: set[str] = set()
        async for row in self._traceable(session.session_id):
            said = [text for text in (row.expected, row.feedback) if text]
            if _is_of(row, order.subject, value):
                found.rollout_ids.add(row.rollout_id)
                found.pinned += row.is_pinned
                texts += said
            else:
                said_of_others.update(said)
        # Labels and remarks that others have, too, tell nothing of this one.
        texts = [text for text in texts if text not in said_of_others]
        trace_ids: set[str] = set()
        cursor: str | None = ""
        while cursor is not None and found.rollout_ids:
            page = await self._store.call_texts(
                session.session_id, found.rollout_ids, limit=READ_AT_ONCE, cursor=cursor or None
            )
            found.calls += len(page.items)
            trace_ids.update(call.trace_id for call in page.items)
            texts += [call.input for call in page.items]
            answers += [call.output for call in page.items]
            cursor = page.next_cursor
        example_id = order.value if order.subject is ForgetSubject.EXAMPLE_ID else None
        proposed = [version for version in levers if version.version > 1]
        known = "\n".join(_text_of(version) for version in levers if version.version == 1)
        # Many answers say the same: they count where they were to be seen.
        made_of_them = [
            version
            for version in proposed
            if not trace_ids.isdisjoint(version.provenance.source_trace_ids)
        ]
        found.versions = {
            (version.lever, version.version)
            for version in (
                *await asyncio.to_thread(_repeating, proposed, texts, known=known),
                *await asyncio.to_thread(_repeating, made_of_them, answers, known=known),
                *(version for version in proposed if _shows(version, found, trace_ids, example_id)),
            )
        }
        return found

    async def _traceable(self, session_id: str) -> AsyncIterator[TraceableReward]:
        cursor: str | None = None
        while True:
            page = await self._store.traceable(session_id, limit=READ_AT_ONCE, cursor=cursor)
            for row in page.items:
                yield row
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    async def _remove(self, session: Session, order: ForgetOrder, rollout_ids: set[str]) -> None:
        """Remove calls, then rollouts, then calls that came meanwhile, then their events."""
        levers = await self._store.levers(session.session_id)
        # Including versions emptied before this request was interrupted.
        emptied = [(version.lever, version.version) for version in levers if version.forgotten]
        await self._remove_calls(order, rollout_ids, emptied)
        ids = sorted(rollout_ids)
        for start in range(0, len(ids), REMOVED_AT_ONCE):
            piece = ids[start : start + REMOVED_AT_ONCE]
            await self._store.remove_rollouts(order, piece, at=self._clock())
            self._live.forget_pins(session.baseline_id, piece)
            await asyncio.sleep(PAUSE_SECONDS)
        await self._journal.flush()
        await self._remove_calls(order, rollout_ids, emptied)
        cursor: str | None = ""
        while cursor is not None:
            cursor = await self._store.remove_events(
                session.session_id, rollout_ids, limit=READ_AT_ONCE, cursor=cursor or None
            )
            await asyncio.sleep(PAUSE_SECONDS)

    async def _remove_calls(
        self, order: ForgetOrder, rollout_ids: set[str], emptied: Sequence[VersionKey]
    ) -> None:
        cursor: str | None = ""
        while cursor is not None:
            cursor = await self._store.remove_calls(
                order, rollout_ids, emptied, limit=READ_AT_ONCE, cursor=cursor or None
            )
            await asyncio.sleep(PAUSE_SECONDS)


def _is_of(row: TraceableReward, subject: ForgetSubject, value: str) -> bool:
    match subject:
        case ForgetSubject.ROLLOUT_ID:
            return row.rollout_id == value
        case ForgetSubject.EXAMPLE_ID:
            return value in row.example_ids
        case ForgetSubject.CORRELATION_ID:
            return value in row.correlation_ids
        case ForgetSubject.USER:
            return user_of(row.metadata) == value


def _repeating(
    versions: Sequence[LeverVersion], texts: Sequence[str], *, known: str
) -> list[LeverVersion]:
    """The versions in which a passage of one of the texts stands, or a whole short one."""
    found: list[LeverVersion] = []
    for start in range(0, len(texts), COMPARED_AT_ONCE):
        piece = texts[start : start + COMPARED_AT_ONCE]
        copies = Copies.of(piece, wholes=piece, known=known)
        found += [version for version in versions if copies.in_text(_text_of(version))]
    return found


def _text_of(version: LeverVersion) -> str:
    turns = (text for shown in version.demonstrations for text in (shown.input, shown.output))
    return "\n".join((version.text, *turns))


def _shows(
    version: LeverVersion, found: _Found, trace_ids: set[str], example_id: str | None
) -> bool:
    """Whether a demonstration is of one of the calls, or of the example."""
    return any(
        shown.trace_id in trace_ids
        or shown.rollout_id in found.rollout_ids
        or (example_id is not None and shown.example_id == example_id)
        for shown in version.demonstrations
    )


def _holds_any(candidate: Candidate, found: _Found, levers: Sequence[LeverVersion]) -> bool:
    return any(
        candidate.holds(version)
        for version in levers
        if (version.lever, version.version) in found.versions
    )


def _named(found: _Found) -> tuple[str, ...]:
    return tuple(f"{lever} {version}" for lever, version in sorted(found.versions))


class Removal:
    """Deletion of sessions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def delete(self, session_id: str) -> DeletedSession:
        """Delete a session in any state. Raises SessionNotFound, for a second caller too.

        The session is found by nobody from its beginning on. Rows go piece by piece, so that other
        sessions are served meanwhile. What is broken off is left to `finish`.
        """
        await self._store.begin_deletion(session_id)
        await self._finish(session_id)
        return DeletedSession(session_id=session_id)

    async def finish(self) -> None:
        """Finish deletions that were interrupted."""
        for session_id in await self._store.begun_deletions():
            await self._finish(session_id)
            log.info("deletion_finished", extra={"session_id": session_id})

    async def _finish(self, session_id: str) -> None:
        with suppress(SessionNotFound):  # another server was first
            while await self._store.thin(session_id, limit=PIECE):
                pass
            await self._store.delete_session(session_id)
