"""What operators ask of a store: a check that it takes writes, deletions, retention.

Like those of `interface.py`, each method is one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


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
