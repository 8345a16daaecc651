"""Calling a task, or its async twin, without Prefect around it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from prefect_mipro import tasks

Call = Callable[..., Any]


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """What the function of that name in `prefect_mipro.tasks` returns, awaited if need be."""
    function = getattr(tasks, name)
    value = getattr(function, "fn", function)(*args, **kwargs)
    return asyncio.run(value) if inspect.iscoroutine(value) else value


both = pytest.mark.parametrize("twin", ["", "a"], ids=["sync", "async"])
