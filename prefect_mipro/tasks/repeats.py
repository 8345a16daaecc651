"""How the tasks that are safe to repeat, and parts of the others, are repeated.

The client repeats for seconds; these repeat over a restart of the backend.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from prefect_mipro.errors import BackendUnreachable, MiproError, Overloaded, StoreFailed
from prefect_mipro.tasks.logs import run_logger

T = TypeVar("T")

# Failures that go away by themselves, and the waits between tries.
PASSING = (BackendUnreachable, Overloaded, StoreFailed)
WAITS_SECONDS = (2, 8, 20)


def over_a_restart(ask: Callable[[], T], *, waits_seconds: Sequence[float] = WAITS_SECONDS) -> T:
    """Its value, after as many tries as the backend needs to come back; else its last error."""
    for wait_seconds in waits_seconds:
        try:
            return ask()
        except PASSING as error:
            _tell(error, wait_seconds)
        time.sleep(wait_seconds)
    return ask()


async def aover_a_restart(
    ask: Callable[[], Awaitable[T]], *, waits_seconds: Sequence[float] = WAITS_SECONDS
) -> T:
    """The same for a coroutine function."""
    for wait_seconds in waits_seconds:
        try:
            return await ask()
        except PASSING as error:
            _tell(error, wait_seconds)
        await asyncio.sleep(wait_seconds)
    return await ask()


def _tell(error: MiproError, wait_seconds: float) -> None:
    run_logger().warning(
        "The backend is away (%s); asking again in %g s", type(error).__name__, wait_seconds
    )


def _passing(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the failure is one that goes away by itself."""
    return isinstance(state.data, PASSING)


REPEATABLE: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": len(WAITS_SECONDS),
    "retry_delay_seconds": [*WAITS_SECONDS],
    "retry_condition_fn": _passing,
}
