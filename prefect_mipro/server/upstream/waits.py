"""Waits that end in time: one timer looks after the waits of all calls.

A timer of asyncio for each wait costs as much as reading what was waited for.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Watch:
    """Ends overdue waits, checked every `tick_seconds` while there are any."""

    def __init__(self, *, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self._waits: set[Wait] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.TimerHandle | None = None

    def wait(self) -> Wait:
        """A wait for one caller, to be used again for each of its waits."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return Wait(self, self._loop)

    def add(self, wait: Wait) -> None:
        """Watch a wait from now on."""
        self._waits.add(wait)
        if self._next is None and self._loop is not None:
            self._next = self._loop.call_later(self._tick_seconds, self._look)

    def remove(self, wait: Wait) -> None:
        """Stop watching a wait."""
        self._waits.discard(wait)

    def stop(self) -> None:
        """Stop the timer."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        for wait in self._waits:
            if wait.due <= now:
                wait.end()
        self._next = self._loop.call_later(self._tick_seconds, self._look) if self._waits else None


class Wait:
    """A block that raises TimeoutError once `due` is past, in seconds of the loop's clock."""

    def __init__(self, watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
        self.due = 0.0
        self._watch = watch
        self._loop = loop
        self._task: asyncio.Task[object] | None = None
        self._ended = False
        self._cancelled_before = 0

    @property
    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def until(self, due: float) -> Self:
        """The same wait with another end."""
        self.due = due
        return self

    def end(self) -> None:
        """Cancel the awaited work."""
        if self._task is not None and not self._ended:
            self._ended = True
            self._task.cancel()

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task(self._loop)
        self._cancelled_before = task.cancelling() if task else 0
        self._watch.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watch.remove(self)
        if self._ended and self._task is not None:
            self._ended = False
            # Somebody else may have cancelled the task as well; then that goes first.
            others = self._task.uncancel() > self._cancelled_before
            if kind is asyncio.CancelledError and not others:
                raise TimeoutError from None
