"""How fast rollouts start: turns that keep a distance, and slots of Prefect's global limits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from prefect_mipro.errors import InputInvalid


class Pace:
    """Turns of one process, never more than `per_second` a second; as many as one likes for `None`.

    A turn that nobody took in time is lost: after a stall there is no burst to catch up. Libraries
    for this keep buckets, which allow one, and do not tell how long the next turn is away.
    """

    def __init__(
        self, per_second: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gap_seconds = 1.0 / per_second if per_second else 0.0
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()

    def away(self) -> float:
        """In how many seconds there is a turn; 0 for now."""
        return max(0.0, self._next - self._clock())

    def take(self) -> float:
        """Take the next turn; in how many seconds it is."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap_seconds
            return turn - now


def slots_of(concurrency_limit: str) -> int:
    """How many slots Prefect's global concurrency limit has. Raises InputInvalid for no such one.

    Prefect itself goes on without a limit that it does not have.
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
