"""Bodies of tasks, written once for blocking and asynchronous code.

A body is a generator that returns `Steps[T]`: it yields steps, is sent the value of each or thrown
its error, and returns a `T`. `run` carries the steps out in a thread, `arun` on an event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from inspect import isawaitable
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

from prefect.concurrency.asyncio import concurrency as aconcurrency
from prefect.concurrency.sync import concurrency

from prefect_mipro.client.operations import Operation
from prefect_mipro.tasks.connections import (
    AsyncConnection,
    Connection,
    async_connection_to,
    connection_to,
)
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.live_rollouts import AsyncLiveRollout, LiveRollout

P = ParamSpec("P")
T = TypeVar("T")


class Connect(NamedTuple):
    """Send all further operations to the backend of this session. Its value is `None`."""

    session: SessionAddress


class Occupy(NamedTuple):
    """Hold slots of one of Prefect's global concurrency limits until the end."""

    concurrency_limit: str
    slots: int


class StartRollout(NamedTuple):
    """Start a rollout. Its value is a `LiveRollout`, or an `AsyncLiveRollout` on an event loop."""

    session: SessionAddress
    rollout_id: str
    example_id: str | None = None
    candidate_id: str | None = None


class Wait(NamedTuple):
    """A pause. Its value is `None`."""

    seconds: float


class BlockingCall(NamedTuple):
    """A call of a function that blocks: in a thread of its own where there is an event loop."""

    function: Callable[[], Any]


class UserCall(NamedTuple):
    """A call of the user's function. On an event loop it may be a coroutine function."""

    function: Callable[[], Any]


class Concurrent(NamedTuple):
    """Several bodies, at most `max_workers` at a time. Its value is their results, in order."""

    bodies: Sequence[Steps[Any]]
    max_workers: int


Step: TypeAlias = (
    Operation[Any] | Connect | Occupy | StartRollout | Wait | BlockingCall | UserCall | Concurrent
)
Steps: TypeAlias = Generator[Step, Any, T]


def ask(operation: Operation[T]) -> Steps[T]:
    """The backend's answer to an operation."""
    answer: T = yield operation
    return answer


def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Steps[T]:
    """The value of a function that blocks."""
    value: T = yield BlockingCall(partial(function, *args, **kwargs))
    return value


def concurrently(bodies: Sequence[Steps[T]], *, max_workers: int) -> Steps[list[T]]:
    """The results of the bodies, in order. After the first error no further body is started.

    Each body has the task's context, so that log lines find their run.
    """
    results: list[T] = yield Concurrent(bodies, max_workers)
    return results


def run(steps: Steps[T], connection: Connection | None = None) -> T:
    """Carry out the steps and return their value. `connection` is that of their operations."""
    value: Any = None
    error: Exception | None = None
    with ExitStack() as opened:
        opened.callback(steps.close)
        while True:
            try:
                step = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            value = error = None
            try:
                match step:
                    case Connect(session):
                        connection = opened.enter_context(connection_to(session))
                    case Occupy(limit, slots):
                        opened.enter_context(concurrency(limit, occupy=slots))
                    case StartRollout():
                        assert connection is not None
                        value = LiveRollout(connection, *step)
                    case Wait(seconds):
                        time.sleep(seconds)
                    case BlockingCall(function) | UserCall(function):
                        value = function()
                    case Concurrent(bodies, max_workers):
                        value = _threaded(bodies, connection, max_workers)
                    case operation:
                        assert connection is not None
                        value = connection.client.send(operation)
            except Exception as raised:
                error = raised


async def arun(steps: Steps[T], connection: AsyncConnection | None = None) -> T:
    """Carry out the steps as `run` does, without blocking the event loop."""
    value: Any = None
    error: Exception | None = None
    async with AsyncExitStack() as opened:
        opened.callback(steps.close)
        while True:
            try:
                step = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            value = error = None
            try:
                match step:
                    case Connect(session):
                        connection = await opened.enter_async_context(async_connection_to(session))
                    case Occupy(limit, slots):
                        await opened.enter_async_context(aconcurrency(limit, occupy=slots))
                    case StartRollout():
                        assert connection is not None
                        value = AsyncLiveRollout(connection, *step)
                    case Wait(seconds):
                        await asyncio.sleep(seconds)
                    case BlockingCall(function):
                        value = await asyncio.to_thread(function)
                    case UserCall(function):
                        value = function()
                        value = await value if isawaitable(value) else value
                    case Concurrent(bodies, max_workers):
                        value = await _gathered(bodies, connection, max_workers)
                    case operation:
                        assert connection is not None
                        value = await connection.client.send(operation)
            except Exception as raised:
                error = raised


def _threaded(
    bodies: Sequence[Steps[Any]], connection: Connection | None, max_workers: int
) -> list[Any]:
    with ThreadPoolExecutor(max_workers=max(1, min(max_workers, len(bodies)))) as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, run, body, connection) for body in bodies
        ]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


async def _gathered(
    bodies: Sequence[Steps[Any]], connection: AsyncConnection | None, max_workers: int
) -> list[Any]:
    places = asyncio.Semaphore(max(1, max_workers))

    async def placed(body: Steps[Any]) -> Any:
        async with places:
            return await arun(body, connection)

    running = [asyncio.ensure_future(placed(body)) for body in bodies]
    try:
        return await asyncio.gather(*running)
    except BaseException:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise
