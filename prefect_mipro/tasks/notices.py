"""Warnings that many rollouts give cause for: a run's log has them at the 1st, 10th, 100th..."""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum

from prefect.runtime import flow_run

# A process may live long: counts of earlier runs are dropped beyond this number.
REMEMBERED_COUNTS = 1_000


class Notice(StrEnum):
    """What a warning is about. Each has a count of its own."""

    UNAPPLIED = "unapplied"
    UNAPPLIED_REWARD = "unapplied reward"
    UNCOUNTED_REWARD = "uncounted reward"


class Notices:
    """Counts of causes in this process, by flow run and session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str | None, str, Notice]] = Counter()

    def due(self, session_id: str, notice: Notice, *, more: int = 1) -> int:
        """Count more causes. Returns how many there are when a warning is due, else 0."""
        if not more:
            return 0
        key = (flow_run.get_id(), session_id, notice)
        with self._lock:
            before = self._counts.pop(key, 0)
            now = self._counts[key] = before + more
            while len(self._counts) > REMEMBERED_COUNTS:
                del self._counts[next(iter(self._counts))]
        return now if not before or len(str(now)) > len(str(before)) else 0


_shared = Notices()


def due(session_id: str, notice: Notice, *, more: int = 1) -> int:
    """Count more causes in this process. Returns how many there are when a warning is due, else 0.

    A function, because tasks are pickled with what they mention, and a lock cannot be.
    """
    return _shared.due(session_id, notice, more=more)
