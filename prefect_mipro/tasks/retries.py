"""Retries that outlast a restart of the backend, for whole tasks and parts of tasks.

The client itself retries for seconds only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from prefect_mipro.errors import BackendUnreachable, Overloaded, StoreFailed
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.steps import Steps, Wait

T = TypeVar("T")

# Failures that pass by themselves, and the waits between attempts.
PASSING = (BackendUnreachable, Overloaded, StoreFailed)
WAITS_SECONDS = (2, 8, 20)


def over_a_restart(
    attempt: Callable[[], Steps[T]], *, waits_seconds: Sequence[float] = WAITS_SECONDS
) -> Steps[T]:
    """The value of an attempt, retried until the backend is back; else the last error."""
    for wait_seconds in waits_seconds:
        try:
            return (yield from attempt())
        except PASSING as error:
            run_logger().warning(
                "The backend is away (%s); retrying in %g s", type(error).__name__, wait_seconds
            )
        yield Wait(wait_seconds)
    return (yield from attempt())


def _is_passing(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the failure passes by itself."""
    return isinstance(state.data, PASSING)


# Options of tasks. A stored result could be read by anyone with access to the storage.
ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
RETRIED: dict[str, Any] = {
    **ONCE,
    "retries": len(WAITS_SECONDS),
    "retry_delay_seconds": [*WAITS_SECONDS],
    "retry_condition_fn": _is_passing,
}
