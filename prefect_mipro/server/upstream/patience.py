"""How long an upstream is waited for, and how often it is asked again."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

# Some servers answer 500 to input that they cannot process; they would do so each time.
REPEATED_STATUSES = frozenset({429, 502, 503, 504})
LONGEST_TICK_SECONDS = 0.25
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]+)?")


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for the connection, the first byte, each next one, and for it all.

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
    """How often a call is repeated before its first byte, and after which waits.

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


def retry_after_seconds(header: str | None, *, sent: str | None = None) -> float | None:
    """A Retry-After header as seconds from now; it holds seconds or a date (RFC 9110, 10.2.3).

    `sent` is the answer's own Date header. A date counts from there, so that no two clocks are
    compared; from this machine's present where the answer has none.
    """
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    due = _seconds_of(text)
    if due is None:
        return None
    now = _seconds_of(sent or "")
    return max(0.0, due - (time.time() if now is None else now))


def _seconds_of(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
