"""Rollouts that ran without their candidate's prompt, and the warnings of them in a run's log."""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum

from prefect.runtime import flow_run

from prefect_mipro.errors import MiproError
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.tasks.connections import AsyncConnection, Connection, SessionHandle
from prefect_mipro.tasks.logs import run_logger

WAY_OUT = (
    "Send the messages of the config's initial_prompt (rollout.ask(row) and rollout.messages(row) "
    "do), or state there what your program sends"
)

# A process may live long: counts of earlier runs are dropped beyond this number.
REMEMBERED_COUNTS = 1_000


class Seen(StrEnum):
    """Where such a rollout came to light. Each place has a count of its own."""

    CALLS = "Rollouts"
    REWARDS = "Rewarded rollouts"


class Unapplied:
    """Counts of such rollouts in this process, by flow run and session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str | None, str, Seen]] = Counter()

    def count(self, session_id: str, seen: Seen, more: int) -> int:
        """Add to the count. Returns it when the log is to tell: it has a digit more, else 0."""
        if not more:
            return 0
        key = (flow_run.get_id(), session_id, seen)
        with self._lock:
            before = self._counts.pop(key, 0)
            now = self._counts[key] = before + more
            while len(self._counts) > REMEMBERED_COUNTS:
                del self._counts[next(iter(self._counts))]
        return now if not before or len(str(now)) > len(str(before)) else 0


_shared = Unapplied()


def tell_unapplied(
    connection: Connection, session: SessionHandle, seen: Seen = Seen.CALLS, *, rollouts: int = 1
) -> None:
    """Count rollouts without their candidate's prompt, and log a warning when it is due."""
    if number := _shared.count(session.session_id, seen, rollouts):
        try:
            status = connection.client.session_status(session.session_id)
        except MiproError:
            status = None
        _warn(session, seen, number, status)


async def atell_unapplied(
    connection: AsyncConnection,
    session: SessionHandle,
    seen: Seen = Seen.CALLS,
    *,
    rollouts: int = 1,
) -> None:
    """Count rollouts without their candidate's prompt, and log a warning when it is due."""
    if number := _shared.count(session.session_id, seen, rollouts):
        try:
            status = await connection.client.session_status(session.session_id)
        except MiproError:
            status = None
        _warn(session, seen, number, status)


def _warn(session: SessionHandle, seen: Seen, number: int, status: SessionStatus | None) -> None:
    reason = status.context_apply.last_reason if status else None
    run_logger().warning(
        "%s of session %s ran without the candidate's prompt (%d so far), so nothing is learned "
        "from them: %s. %s",
        seen,
        session.session_id,
        number,
        reason or "their messages were not those of the session's initial_prompt",
        WAY_OUT,
    )
