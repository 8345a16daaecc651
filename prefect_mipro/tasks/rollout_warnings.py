"""Warnings about rollouts from which nothing is learned, logged at the 1st, 10th, 100th..."""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum

from prefect.runtime import flow_run

from prefect_mipro.client import operations
from prefect_mipro.errors import MiproError
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.steps import Steps, ask

# A process may live long: counts of earlier runs are dropped beyond this number.
REMEMBERED_COUNTS = 1_000

OWN_IDS = (
    "A rollout is rewarded once: give each run of your program a rollout id of its own, for "
    "example one that ends in the date"
)
WAY_OUT = (
    "Send the messages of the config's initial_prompt (rollout.ask(row) and rollout.messages(row) "
    "do), or state there what your program sends"
)


class Topic(StrEnum):
    """The subject of a warning. Each is counted separately."""

    UNAPPLIED = "unapplied"
    UNAPPLIED_REWARD = "unapplied reward"
    UNCOUNTED_REWARD = "uncounted reward"


_SUBJECTS = {Topic.UNAPPLIED: "Rollouts", Topic.UNAPPLIED_REWARD: "Rewarded rollouts"}


class WarningCounts:
    """Counts of such rollouts in this process, by flow run and session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str | None, str, Topic]] = Counter()

    def due(self, session_id: str, topic: Topic, *, more: int = 1) -> int:
        """Count more rollouts. Returns how many there are when a warning is due, else 0."""
        if not more:
            return 0
        key = (flow_run.get_id(), session_id, topic)
        with self._lock:
            before = self._counts.pop(key, 0)
            now = self._counts[key] = before + more
            while len(self._counts) > REMEMBERED_COUNTS:
                del self._counts[next(iter(self._counts))]
        return now if not before or len(str(now)) > len(str(before)) else 0


def warn_unapplied(
    session: SessionAddress, topic: Topic = Topic.UNAPPLIED, *, rollouts: int = 1
) -> Steps[None]:
    """Count rollouts that ran without their candidate's prompt, and log a warning when due."""
    number = _due(session.session_id, topic, more=rollouts)
    if not number:
        return
    reason = None
    try:
        status = yield from ask(operations.session_status(session.session_id))
        reason = status.context_apply.last_reason
    except MiproError:
        pass
    run_logger().warning(
        "%s of session %s ran without the candidate's prompt (%d so far), so nothing is learned "
        "from them: %s. %s",
        _SUBJECTS[topic],
        session.session_id,
        number,
        reason or "their messages were not those of the session's initial_prompt",
        WAY_OUT,
    )


def warn_uncounted(session: SessionAddress, reason: str) -> None:
    """Count a reward that did not count, and log a warning when due."""
    if number := _due(session.session_id, Topic.UNCOUNTED_REWARD):
        run_logger().warning(
            "Rewards of session %s did not count (%d so far): %s",
            *(session.session_id, number, reason),
        )


_shared = WarningCounts()


def _due(session_id: str, topic: Topic, *, more: int = 1) -> int:
    # A function, because tasks are pickled with the objects they refer to, and a lock cannot be.
    return _shared.due(session_id, topic, more=more)
