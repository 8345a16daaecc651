"""The rate at which rollouts start, and the slots of Prefect's global limits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from prefect_mipro.errors import InputInvalid


class Pace:
    """The turns of one process, at most `per_second` a second; `None` is no limit.

    A turn not taken in time is lost, so that no burst follows a stall. Libraries for this use
    buckets, which allow a burst, and do not tell how far away the next turn is.
    """

    def __init__(
        self, per_second: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gap_seconds = 1.0 / per_second if per_second else 0.0
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()

    def away(self) -> float:
        """The seconds until the next turn."""
        return max(0.0, self._next - self._clock())

    def take(self) -> float:
        """Take the next turn. Returns the seconds until it comes."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap_seconds
            return turn - now


def slots_of(concurrency_limit: str) -> int:
    """The number of slots of one of Prefect's global concurrency limits.

    Raises InputInvalid if there is no such limit; Prefect itself would run without one.
    """
    with get_client(sync_client=True) as prefect:
        try:
            found = prefect.read_global_concurrency_limit_by_name(concurrency_limit)
        except ObjectNotFound:
            raise InputInvalid(
                f"Prefect has no global concurrency limit {concurrency_limit!r}; create it with "
                f"`prefect global-concurrency-limit create {concurrency_limit} --limit 16`"
            ) from None
    return found.limit if found.active else sys.maxsize
