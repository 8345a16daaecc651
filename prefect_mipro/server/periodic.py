"""Work that a server does now and then, for as long as it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prefect_mipro.errors import MiproError

log = logging.getLogger(__name__)


class Periodic:
    """Work done once at the start, and again a fixed number of seconds after each time it ends."""

    def __init__(
        self, name: str, work: Callable[[], Awaitable[object]], *, every_seconds: float
    ) -> None:
        self._name = name
        self._work = work
        self._every_seconds = every_seconds
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Do it now and from now on, until it is closed."""
        self._task = asyncio.create_task(self._go_on())

    async def close(self) -> None:
        """Break it off: another server, or the next start, goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            try:
                await self._work()
            except MiproError as error:
                # The database is full or away: the next time finds what is left.
                log.warning(
                    "periodic_work_failed",
                    extra={"work": self._name, "error": type(error).__name__},
                )
            await asyncio.sleep(self._every_seconds)
