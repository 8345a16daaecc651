"""Readiness: whether the database takes writes and the models' servers take connections.

Probes ask every few seconds and need no key, so an answer serves for a while, takes a short time at
most, and names no address. Of a model's server it says that a connection is taken, no more: to ask
the model would cost money.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from prefect_mipro.errors import MiproError, NotReady
from prefect_mipro.models.readiness import Ready
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.upstream.registry import Upstreams

KEPT_SECONDS = 5.0
LONGEST_SECONDS = 2.0

OK = "ok"
DATABASE = "database"

log = logging.getLogger(__name__)


class Readiness:
    """Readiness checks, whose result is kept for some seconds."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        *,
        kept_seconds: float = KEPT_SECONDS,
        longest_seconds: float = LONGEST_SECONDS,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._kept_seconds = kept_seconds
        self._longest_seconds = longest_seconds
        self._timer = timer
        self._parts: dict[str, str] = {}
        self._until = float("-inf")
        self._looking = asyncio.Lock()

    async def check(self) -> Ready:
        """All parts, if all are in order. Raises NotReady, which says which one is not, and why."""
        async with self._looking:
            if self._timer() >= self._until:
                self._parts = await self._look()
                self._until = self._timer() + self._kept_seconds
        amiss = [f"{part}: {found}" for part, found in self._parts.items() if found != OK]
        if amiss:
            raise NotReady(
                f"not ready ({'; '.join(amiss)}); the server goes on trying",
                detail={"parts": self._parts},
                retry_after_seconds=self._kept_seconds,
            )
        return Ready(parts=self._parts)

    async def _look(self) -> dict[str, str]:
        database, upstreams = await asyncio.gather(
            self._database(), self._upstreams.unreachable(longest_seconds=self._longest_seconds)
        )
        models = {f"upstream {name}": why or OK for name, why in upstreams.items()}
        return {DATABASE: database, **models}

    async def _database(self) -> str:
        try:
            async with asyncio.timeout(self._longest_seconds):
                await self._store.require_writable()
        except TimeoutError:
            return f"it took no write within {self._longest_seconds:g} s"
        except MiproError as error:
            log.warning("database_not_ready", extra={"reason": error.message})
            return "it takes no writes; the server's log says why"
        return OK
