"""Time-outs and repeats of calls to an upstream."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# Some servers answer 500 to input that they cannot process; they would do so each time.
REPEATED_STATUSES = frozenset({429, 502, 503, 504})
LONGEST_TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Timeouts:
    """Time-outs for the connection, the first byte, each next one, and the whole answer.

    The first byte is that of the answer's head; waiting for a connection counts too.
    """

    connect_seconds: float = 5.0
    first_byte_seconds: float = 300.0
    silence_seconds: float = 120.0
    total_seconds: float = 600.0

    @property
    def tick_seconds(self) -> float:
        """How often to look whether one of them is over."""
        shortest = min(self.first_byte_seconds, self.silence_seconds, self.total_seconds)
        return min(LONGEST_TICK_SECONDS, shortest / 4)


@dataclass(frozen=True)
class BackOff:
    """The number of repeats of a call before its first byte, and the waits between them.

    Waits double from `first_wait_seconds` and lose up to half of themselves by chance. A server
    that asks for more than `longest_wait_seconds` has refused: its answer is passed on.
    """

    repeats: int = 2
    first_wait_seconds: float = 0.4
    longest_wait_seconds: float = 10.0
    chance: Callable[[], float] = random.random

    def seconds(self, repeat: int) -> float:
        """The wait before that repeat, counted from 0."""
        wait_seconds = min(self.first_wait_seconds * 2.0**repeat, self.longest_wait_seconds)
        return wait_seconds * (1.0 - self.chance() / 2)
