"""Waits with an end: what is cut off, what is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from prefect_mipro.server.upstream.waits import Watch

LONG_SECONDS = 20.0


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch(tick_seconds=0.01)
    yield watch
    watch.stop()


async def test_a_wait_that_takes_too_long_ends(watch: Watch) -> None:
    wait = watch.wait()
    with pytest.raises(TimeoutError), wait.until(wait.now + 0.02):
        await asyncio.Event().wait()


async def test_an_ended_wait_leaves_its_task_uncancelled_and_can_be_used_again(
    watch: Watch,
) -> None:
    wait = watch.wait()
    for _ in range(2):
        with pytest.raises(TimeoutError), wait.until(wait.now):
            await asyncio.Event().wait()
    with wait.until(wait.now + LONG_SECONDS):
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_between_two_waits_nothing_ends(watch: Watch) -> None:
    wait, other = watch.wait(), watch.wait()
    with wait.until(wait.now + 0.01):
        pass
    with pytest.raises(TimeoutError), other.until(other.now + 0.03):
        await asyncio.Event().wait()


async def test_a_task_that_others_cancel_is_cancelled(watch: Watch) -> None:
    waiting = asyncio.Event()

    async def caller() -> None:
        wait = watch.wait()
        with wait.until(wait.now + LONG_SECONDS):
            waiting.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(caller())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_cancellation_of_others_goes_before_the_end_of_the_wait(watch: Watch) -> None:
    async def caller() -> None:
        wait = watch.wait()
        with wait.until(wait.now + LONG_SECONDS):
            wait.end()
            task.cancel()
            await asyncio.Event().wait()

    task = asyncio.create_task(caller())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_wait_has_its_own_end(watch: Watch) -> None:
    release = asyncio.Event()

    async def caller(seconds: float) -> str:
        wait = watch.wait()
        try:
            with wait.until(wait.now + seconds):
                await release.wait()
        except TimeoutError:
            release.set()
            return "too long"
        return "in time"

    outcomes = await asyncio.gather(caller(LONG_SECONDS), caller(0.02))
    assert list(outcomes) == ["in time", "too long"]
