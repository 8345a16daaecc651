"""A session's calls, each written once and made into a blocking and an awaiting method.

A call is a function that returns `Steps`: a generator that yields each `Ask`, is sent its answer or
thrown its error, and returns the call's value.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

from prefect_mipro.client.connections import Backend, Connections, connected
from prefect_mipro.client.operations import Operation
from prefect_mipro.errors import MiproError
from prefect_mipro.models.base import JsonObject

P = ParamSpec("P")
T = TypeVar("T")


class Ask(NamedTuple):
    """An operation, to be carried out with one of these connections, to that backend."""

    connections: Connections
    backend: Backend
    operation: Operation[JsonObject]


Steps: TypeAlias = Generator[Ask, JsonObject, T]


def blocking(steps: Callable[P, Steps[T]]) -> Callable[P, T]:
    name = steps.__name__.removeprefix("_")

    def method(*args: P.args, **kwargs: P.kwargs) -> T:
        if _in_event_loop():
            raise RuntimeError(
                f"MiproOnlineSession.{name}() would block the running event loop; "
                f"await {name}_async() instead"
            )
        running = steps(*args, **kwargs)
        try:
            ask = next(running)
            while True:
                try:
                    answer = ask.connections.to(ask.backend).send(ask.operation)
                except MiproError as error:
                    ask = running.throw(error)
                else:
                    ask = running.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    return _documented(method, steps, name)


def awaiting(steps: Callable[P, Steps[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    async def method(*args: P.args, **kwargs: P.kwargs) -> T:
        running = steps(*args, **kwargs)
        try:
            ask = next(running)
            while True:
                try:
                    client = await connected(ask.backend)
                    answer = await client.send(ask.operation)
                except MiproError as error:
                    ask = running.throw(error)
                else:
                    ask = running.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    return _documented(method, steps, f"{steps.__name__.removeprefix('_')}_async")


def _documented(
    method: Callable[P, T], steps: Callable[P, Steps[Any]], name: str
) -> Callable[P, T]:
    """`method` with the name, the text and the signature that its callers should read."""
    documented: Any = wraps(steps)(method)
    signature = inspect.signature(steps)
    value = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    documented.__name__ = name
    documented.__qualname__ = f"MiproOnlineSession.{name}"
    documented.__signature__ = signature.replace(return_annotation=value)
    documented.__annotations__ = {**steps.__annotations__, "return": value}
    return method


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
