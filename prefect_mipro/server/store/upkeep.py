"""What operators ask of a store: a check that it takes writes, deletions, retention.

Like those of `interface.py`, each method is one transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.levers import LeverName
from prefect_mipro.models.sessions import ForgetSubject
from prefect_mipro.server.store.records import Page, Withdrawal


class Texts(StrEnum):
    """Where the words of programs and their users are kept."""

    TRACES = "traces"
    FRAMES = "frames"
    REWARDS = "rewards"


@dataclass(frozen=True)
class Swept:
    """How many rows lost their texts, and where to go on; `None` when nothing old is left."""

    rows: int
    cursor: str | None


@dataclass(frozen=True)
class Removed:
    """How many rows of a session were removed, and which rollouts, if they were rollouts."""

    rows: int
    baseline_id: str = ""
    rollout_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForgetOrder:
    """A request to forget that is under way. `rollouts` and `calls` are those removed so far."""

    request_id: str
    session_id: str
    subject: ForgetSubject
    value: str
    requested_at: datetime
    rollouts: int = 0
    calls: int = 0


@dataclass(frozen=True)
class TraceableReward:
    """What names the subject of a rollout and its reward, and the texts that came with these."""

    rollout_id: str
    is_pinned: bool
    correlation_ids: tuple[str | None, ...]
    example_ids: tuple[str | None, ...]
    metadata: JsonObject | None
    expected: str | None
    feedback: str | None


@dataclass(frozen=True)
class CallTexts:
    """The texts of one call."""

    trace_id: str
    input: str
    output: str


class Upkeep(Protocol):
    """The part of a store that no call of a program needs."""

    async def require_writable(self) -> None:
        """Write something, and take it back. Raises StoreFailed where there is no room for it."""
        ...

    async def begin_deletion(self, session_id: str) -> None:
        """Hide the session, in any state, from all but its deletion. Raises SessionNotFound."""
        ...

    async def begun_deletions(self) -> tuple[str, ...]:
        """The ids of sessions whose deletion has begun and not ended."""
        ...

    async def thin(self, session_id: str, *, limit: int) -> int:
        """Delete at most `limit` of a session's calls, events, rewards and older rollouts.

        Returns how many were deleted. Counters stay: the session is about to be deleted as a whole.
        """
        ...

    async def delete_session(self, session_id: str) -> None:
        """Delete the session and all that is left of it. Its id is free again."""
        ...

    async def session_ids(self) -> tuple[str, ...]:
        """The ids of all sessions."""
        ...

    async def remove_old(
        self, session_id: str, *, before: datetime, limit: int, at: datetime
    ) -> Removed:
        """Remove at most `limit` rows of one kind that are older; no rows when none is left.

        Rollouts go with their rewards, then calls with their frames, rewards that still wait for
        their rollouts, and events. The rollouts of the newest duel stay. All counters stay as they
        are, but rollouts whose rewards were awaited still count as missing.
        """
        ...

    async def begin_forgetting(self, order: ForgetOrder) -> None:
        """Keep the order until it has been carried out. Raises SessionNotFound."""
        ...

    async def begun_forgettings(self) -> tuple[ForgetOrder, ...]:
        """The orders that have not been carried out to their end, the oldest first."""
        ...

    async def traceable(
        self, session_id: str, *, limit: int, cursor: str | None = None
    ) -> Page[TraceableReward]:
        """A session's rollouts with their rewards, then the rewards that wait for a rollout.

        A page may be empty and have another one after it.
        """
        ...

    async def call_texts(
        self, session_id: str, rollout_ids: Collection[str], *, limit: int, cursor: str | None
    ) -> Page[CallTexts]:
        """The calls of these rollouts among the next `limit` frames of the session."""
        ...

    async def empty_levers(
        self,
        session_id: str,
        versions: Collection[tuple[LeverName, int]],
        *,
        at: datetime,
        reason: str,
    ) -> Withdrawal:
        """Empty lever versions for good, and withdraw the candidates that are made of them."""
        ...

    async def remove_rollouts(
        self, order: ForgetOrder, rollout_ids: Collection[str], *, at: datetime
    ) -> int:
        """Remove these rollouts and their rewards, and count the rollouts for the order.

        Counters stay as they are, as for `remove_old`. Returns how many rollouts there were.
        """
        ...

    async def remove_calls(
        self,
        order: ForgetOrder,
        rollout_ids: Collection[str],
        emptied: Collection[tuple[LeverName, int]],
        *,
        limit: int,
        cursor: str | None,
    ) -> str | None:
        """Remove, among the next `limit` frames, those of these rollouts or of removed rollouts.

        Their traces go with them. Other traces lose the messages that were sent, if these had one
        of the `emptied` lever versions in them. Returns the cursor of the next frames; `None` after
        the last.
        """
        ...

    async def remove_events(
        self, session_id: str, rollout_ids: Collection[str], *, limit: int, cursor: str | None
    ) -> str | None:
        """Remove, among the next `limit` events, those about these rollouts or removed rollouts.

        Returns the cursor of the next events; `None` after the last.
        """
        ...

    async def end_forgetting(
        self, order: ForgetOrder, *, data: JsonObject, at: datetime
    ) -> ForgetOrder | None:
        """Forget the order itself, with an event; `None` where another server was first."""
        ...

    async def give_back_space(self) -> int:
        """Give some of the database's free space back to its disk; 0 when there is none."""
        ...

    async def forget_texts(
        self, texts: Texts, *, before: datetime, limit: int, cursor: str | None = None
    ) -> Swept:
        """Of the next rows after the cursor, at most `limit`, empty the texts of the older ones.

        Calls and their frames are in the order in which they came here, so that the first one that
        is not old ends them. Numbers stay, and so does whether a call failed.
        """
        ...
