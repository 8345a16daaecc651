"""The parameters of a run as Prefect stores them, without examples and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow
from prefect.task_runners import TaskRunner

P = ParamSpec("P")
R = TypeVar("R")

HIDDEN = "********"
FEW = 20


class LoopFlow(Flow[P, R]):
    """A flow whose runs are recorded without their examples and without keys.

    Prefect stores the parameters of every run, shows them, and refuses a run whose parameters are
    larger than half a megabyte.
    """

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Counts in place of collections, names in place of functions."""
        return super().serialize_parameters(
            {name: recorded(value) for name, value in parameters.items()}
        )

    def with_options(self, **options: Any) -> LoopFlow[P, R]:
        """A copy with other options, recorded alike."""
        copy = super().with_options(**options)
        copy.__class__ = LoopFlow
        return cast(LoopFlow[P, R], copy)


def loop_flow(
    *, name: str, task_runner: TaskRunner[Any]
) -> Callable[[Callable[P, R]], LoopFlow[P, R]]:
    """A decorator that makes a `LoopFlow` of a function."""

    def decorated(function: Callable[P, R]) -> LoopFlow[P, R]:
        return LoopFlow(function, name=name, task_runner=task_runner)

    return decorated


def recorded(value: Any) -> Any:
    """The stored form of a parameter's value."""
    match value:
        case str() | bytes() | bytearray():
            return value
        case Mapping():
            return {key: _entry(key, inner) for key, inner in value.items()}
        case Sequence() if len(value) > FEW:
            return f"<{len(value)} items>"
        case _ if callable(value) and hasattr(value, "__qualname__"):
            return f"{value.__module__}.{value.__qualname__}"
    return value


def _entry(key: Any, value: Any) -> Any:
    if str(key).endswith("api_key"):
        return HIDDEN
    return recorded(value) if isinstance(value, Mapping) else value
