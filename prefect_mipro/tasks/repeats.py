"""How the tasks that are safe to repeat are repeated.

The client repeats for seconds; a task repeats over a restart of the backend.
"""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from prefect_mipro.errors import BackendUnreachable, Overloaded, StoreFailed


def _passing(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the failure is one that goes away by itself."""
    return isinstance(state.data, BackendUnreachable | Overloaded | StoreFailed)


REPEATABLE: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 3,
    "retry_delay_seconds": [2, 8, 20],
    "retry_condition_fn": _passing,
}
