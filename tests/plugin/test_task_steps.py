"""Bodies of tasks: one generator, carried out in threads and on an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, assert_type

import pytest

from prefect_mipro import tasks
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.tasks.steps import Steps, UserCall, Wait, arun, blocking, concurrently, run

T = TypeVar("T")
Run = Callable[[Steps[Any]], Any]

if TYPE_CHECKING:

    async def twins_have_the_types_of_their_body(session: tasks.SessionHandle) -> None:
        assert_type(tasks.begin_epoch(session, reason="new model"), SessionStatus)
        assert_type(await tasks.abegin_epoch(session, reason="new model"), SessionStatus)
        tasks.begin_epoch.fn(session, reason=1)  # type: ignore[arg-type]
        await tasks.abegin_epoch.fn(session, because="")  # type: ignore[call-arg]


def asynchronously(steps: Steps[T]) -> T:
    return asyncio.run(arun(steps))


@pytest.fixture(params=[run, asynchronously])
def carry_out(request: pytest.FixtureRequest) -> Run:
    carried_out: Run = request.param
    return carried_out


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError("x"), StopIteration()], ids=repr)
def test_the_error_of_a_step_is_raised_where_it_was_yielded(
    carry_out: Run, error: Exception
) -> None:
    def inner() -> Steps[str]:
        try:
            yield UserCall(failing(error))
        except Exception as caught:
            return f"caught {caught!r}"
        return "not caught"

    def body() -> Steps[str]:
        return (yield from inner())

    assert carry_out(body()) == f"caught {error!r}"


def test_an_interrupt_ends_the_body_and_is_not_offered_to_it(carry_out: Run) -> None:
    seen: list[str] = []

    def body() -> Steps[None]:
        try:
            yield UserCall(failing(KeyboardInterrupt()))
        except Exception:
            seen.append("caught")
        finally:
            seen.append("closed")

    with pytest.raises(KeyboardInterrupt):
        carry_out(body())
    assert seen == ["closed"]


def test_concurrent_bodies_keep_their_order_and_their_bound(carry_out: Run) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def each(number: int) -> Steps[int]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        yield Wait(0.001)
        with lock:
            running -= 1
        return number

    bodies = [each(number) for number in range(12)]
    assert carry_out(concurrently(bodies, max_workers=3)) == list(range(12))
    assert most <= 3


def test_after_the_first_error_no_further_body_is_started(carry_out: Run) -> None:
    started: list[int] = []

    def each(number: int) -> Steps[None]:
        started.append(number)
        if number == 0:
            yield UserCall(failing(ValueError("the first")))
        yield Wait(0.01)

    with pytest.raises(ValueError, match="the first"):
        carry_out(concurrently([each(number) for number in range(200)], max_workers=1))
    assert len(started) < 200


async def test_what_blocks_leaves_the_event_loop_free() -> None:
    released = threading.Event()
    asyncio.get_running_loop().call_soon(released.set)
    assert await arun(blocking(released.wait, 10))
