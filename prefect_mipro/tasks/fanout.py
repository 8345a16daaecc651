"""Several pieces of work at a time within one task, a bounded number of them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def threaded(work: Callable[[T], R], items: Sequence[T], *, max_workers: int) -> list[R]:
    """The results in order; after the first error nothing more is started.

    Each thread sees the task's context, so that log lines find their run.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(max_workers, len(items)))) as pool:
        futures = [pool.submit(contextvars.copy_context().run, work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


async def gathered(
    work: Callable[[T], Awaitable[R]], items: Sequence[T], *, max_workers: int
) -> list[R]:
    """The results in order; the first error cancels the rest."""
    places = asyncio.Semaphore(max(1, max_workers))

    async def placed(item: T) -> R:
        async with places:
            return await work(item)

    running = [asyncio.ensure_future(placed(item)) for item in items]
    try:
        return await asyncio.gather(*running)
    except BaseException:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise
