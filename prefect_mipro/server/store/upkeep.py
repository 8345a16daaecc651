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


class Upkeep(Protocol):
    """The part of a store that no call of a program needs."""

    async def require_writable(self) -> None:
        """Write something, and take it back. Raises StoreFailed where there is no room for it."""
        ...

    async def thin(self, session_id: str, *, limit: int) -> int:
        """Delete up to so many of its calls, events, rewards and older rollouts; how many it did.

        Counters stay: it is for a session that is about to be deleted as a whole.
        """
        ...

    async def delete_session(self, session_id: str) -> None:
        """Delete it and all that is left of it, in any state. Its id is free again."""
        ...

    async def forget_texts(
        self, texts: Texts, *, before: datetime, limit: int, cursor: str | None = None
    ) -> Swept:
        """Of the next rows after the cursor, at most `limit`, empty the texts of the older ones.

        Calls and their frames are in the order in which they came here, so that the first one that
        is not old ends them. Numbers stay, and so does whether a call failed.
        """
        ...
