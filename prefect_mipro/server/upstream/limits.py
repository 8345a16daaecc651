"""Limits of a provider: calls at a time, calls a minute, calls that wait for their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from prefect_mipro.errors import Overloaded
from prefect_mipro.server.upstream.interface import UpstreamCounts

MINUTE_SECONDS = 60.0
# Who would have to wait longer for the next minute is told to come back instead.
LONGEST_WAIT_SECONDS = 10.0
RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """The most calls at a time and in any minute; unset means no limit."""

    max_concurrent_calls: int | None = None
    calls_per_minute: int | None = None
    max_waiting_calls: int = 100


class Rate:
    """A sliding window: at most `calls` calls start in any `window_seconds`."""

    def __init__(self, calls: int, *, window_seconds: float = MINUTE_SECONDS) -> None:
        self._starts: deque[float] = deque(maxlen=calls)
        self._window_seconds = window_seconds

    def wait_seconds(self, now: float) -> float:
        """How long a call that comes now would have to wait."""
        if len(self._starts) < (self._starts.maxlen or 0):
            return 0.0
        return max(0.0, self._starts[0] + self._window_seconds - now)

    def start(self, at: float) -> None:
        """Note that a call starts at that time. Calls come in the order of their starts."""
        self._starts.append(at)


class Gate:
    """Lets the calls to one provider pass within its limits."""

    def __init__(self, limits: Limits, counts: UpstreamCounts, *, name: str) -> None:
        self._limits = limits
        self._counts = counts
        self._name = name
        at_once, a_minute = limits.max_concurrent_calls, limits.calls_per_minute
        self._places = asyncio.Semaphore(at_once) if at_once else None
        self._rate = Rate(a_minute) if a_minute else None

    async def enter(self) -> None:
        """Take a place among the calls under way. Raises Overloaded when too many wait for one."""
        if self._places is None:
            return
        if not self._places.locked():
            await self._places.acquire()
            return
        self._queue(RETRY_AFTER_SECONDS)
        try:
            await self._places.acquire()
        finally:
            self._counts.waiting -= 1

    def leave(self) -> None:
        """Give the place back."""
        if self._places is not None:
            self._places.release()

    async def turn(self) -> None:
        """Wait until another request may start. Raises Overloaded when that is too far off."""
        if self._rate is None:
            return
        now = asyncio.get_running_loop().time()
        wait_seconds = self._rate.wait_seconds(now)
        if wait_seconds > LONGEST_WAIT_SECONDS:
            raise self._overloaded(
                f"{self._limits.calls_per_minute} calls went to {self._name} within a minute",
                wait_seconds,
            )
        if wait_seconds:
            self._queue(wait_seconds)
        self._rate.start(now + wait_seconds)
        if wait_seconds:
            try:
                await asyncio.sleep(wait_seconds)
            finally:
                self._counts.waiting -= 1

    def _queue(self, retry_after_seconds: float) -> None:
        if self._counts.waiting >= self._limits.max_waiting_calls:
            raise self._overloaded(
                f"{self._counts.waiting} calls wait for {self._name} already", retry_after_seconds
            )
        self._counts.waiting += 1

    def _overloaded(self, what: str, retry_after_seconds: float) -> Overloaded:
        self._counts.refused += 1
        return Overloaded(
            f"{what}, the limit that this server has for it; send fewer at a time, or raise the "
            "provider's max_concurrent_calls, calls_per_minute or max_waiting_calls",
            retry_after_seconds=retry_after_seconds,
        )
