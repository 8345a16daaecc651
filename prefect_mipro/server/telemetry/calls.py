"""Measurement of proxied calls: outcome, duration, and the time that the proxy added."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from types import TracebackType
from typing import Self

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prefect_mipro.errors import (
    BackendFailed,
    MiproError,
    Overloaded,
    UpstreamFailed,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from prefect_mipro.models.chat import Usage
from prefect_mipro.server.telemetry.counts import STREAMING, Distribution, Tally

Timer = Callable[[], float]

# Model calls take from milliseconds (a local model, one token) to the longest time-out by default.
CALL_BUCKETS_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
ADDED_BUCKETS_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
NO_ANSWER = "none"

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a proxied call ended, by what an operator would do about it."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    OVERLOADED = "overloaded"
    UPSTREAM_REFUSED = "upstream_refused"
    RATE_LIMITED = "rate_limited"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    BACKEND_ERROR = "backend_error"
    CANCELLED = "cancelled"

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """What an error means that ended a call."""
        for kind, outcome in _OUTCOMES:
            if isinstance(error, kind):
                return outcome
        return cls.BACKEND_ERROR

    @classmethod
    def of_status(cls, status: int) -> Outcome:
        """What a whole answer of the upstream means."""
        if status < 400:
            return cls.OK
        if status == 429:
            return cls.RATE_LIMITED
        return cls.UPSTREAM_REFUSED if status < 500 else cls.UPSTREAM_ERROR


_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (asyncio.CancelledError, Outcome.CANCELLED),
    (Overloaded, Outcome.OVERLOADED),
    (UpstreamTimedOut, Outcome.TIMEOUT),
    (UpstreamUnreachable, Outcome.UNREACHABLE),
    (UpstreamFailed, Outcome.UPSTREAM_ERROR),
    (BackendFailed, Outcome.BACKEND_ERROR),
    (MiproError, Outcome.CLIENT_ERROR),
)
_USUAL = {
    Outcome.OK: "2xx",
    Outcome.CLIENT_ERROR: "4xx",
    Outcome.OVERLOADED: "4xx",
    Outcome.UPSTREAM_REFUSED: "4xx",
    Outcome.RATE_LIMITED: "4xx",
    Outcome.UPSTREAM_ERROR: "5xx",
    Outcome.TIMEOUT: "5xx",
    Outcome.UNREACHABLE: "5xx",
    Outcome.BACKEND_ERROR: "5xx",
    Outcome.CANCELLED: NO_ANSWER,
}
_CLASSES = tuple(NO_ANSWER if number == 0 else f"{number}xx" for number in range(10))


RawHeaders = Iterable[tuple[bytes, bytes]]


class CallMeter(Collector):
    """All proxied calls of one app."""

    def __init__(self, *, timer: Timer = time.perf_counter) -> None:
        self.timer = timer
        self.in_flight = 0
        self._calls = Tally(
            "mipro_proxy_calls",
            "Proxied calls that have ended.",
            ("outcome", "status_class", "streaming"),
            known=((*usual, label) for usual in _USUAL.items() for label in STREAMING),
        )
        self._durations = Distribution(
            "mipro_proxy_call_duration_seconds",
            "From a call's arrival to the last byte of its answer.",
            CALL_BUCKETS_SECONDS,
        )
        self._first_bytes = Distribution(
            "mipro_proxy_first_byte_seconds",
            "From a call's arrival to the first byte of its answer.",
            CALL_BUCKETS_SECONDS,
        )
        self._added = Distribution(
            "mipro_proxy_added_seconds",
            "From a call's arrival to the moment in which its upstream is asked.",
            ADDED_BUCKETS_SECONDS,
        )
        self._tokens = Tally(
            "mipro_proxy_tokens",
            "Tokens of proxied calls, as upstreams count them.",
            ("kind",),
            known=(("prompt",), ("completion",)),
        )
        self._cost = Tally("mipro_proxy_cost_usd", "What they cost, where prices are known.")

    def call(self) -> MeteredCall:
        """A call that is about to begin."""
        return MeteredCall(self)

    def count(self, call: MeteredCall) -> None:
        """Add a call that has ended."""
        streaming = call.streaming
        self._calls.add(call.outcome, _CLASSES[call.status // 100], STREAMING[streaming])
        self._durations.observe(streaming, call.ended_at - call.began_at)
        if call.forwarded_at:
            self._added.observe(streaming, call.forwarded_at - call.began_at)
        if call.started_at:
            self._first_bytes.observe(streaming, call.started_at - call.began_at)

    def count_use(self, usage: Usage, cost_usd: float | None) -> None:
        """Add what an upstream says it has read and written, and what that costs, if known."""
        self._tokens.add("prompt", amount=usage.prompt_tokens)
        self._tokens.add("completion", amount=usage.completion_tokens)
        if cost_usd is not None:
            self._cost.add(amount=cost_usd)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "mipro_proxy_calls_in_flight", "Proxied calls under way.", self.in_flight
        )
        yield from self._calls.collect()
        yield from self._durations.collect()
        yield from self._first_bytes.collect()
        yield from self._added.collect()
        yield from self._tokens.collect()
        yield from self._cost.collect()


class MeteredCall:
    """One proxied call; the block that it guards is the whole call.

    Moments are seconds of the meter's timer, 0 where they have not come. A block that ends without
    error before `finished` is that of a caller who went away. `status` stays 0 if nothing was sent.
    """

    began_at = forwarded_at = started_at = ended_at = 0.0
    session_id = rollout_id = candidate_id = ""
    status = 0
    streaming = False
    outcome = Outcome.CANCELLED
    _whole = False
    _broken = False

    def __init__(self, meter: CallMeter) -> None:
        self._meter = meter

    def chosen(self, session_id: str, rollout_id: str, candidate_id: str) -> None:
        """Note which candidate serves the call."""
        self.session_id = session_id
        self.rollout_id = rollout_id
        self.candidate_id = candidate_id

    def forwarded(self, provider: str, model: object) -> None:
        """Note that the provider's upstream is asked for the model from now on."""
        self.forwarded_at = self._meter.timer()

    def started(self, status: int, *, streaming: bool) -> None:
        """Note that the first byte of the answer goes to the caller."""
        self.started_at = self._meter.timer()
        self.status = status
        self.streaming = streaming

    def finished(self) -> None:
        """Note that the last byte has gone to the caller."""
        self.ended_at = self._meter.timer()
        self._whole = True

    def read(
        self, usage: Usage, *, model: str | None, cost_usd: float | None, broken: bool
    ) -> None:
        """What the answer says: what it took, which model gave it, and whether it is one."""
        self._meter.count_use(usage, cost_usd)
        self._broken = broken

    def __enter__(self) -> Self:
        self._meter.in_flight += 1
        self.began_at = self._meter.timer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        meter = self._meter
        meter.in_flight -= 1
        if not self._whole:
            self.ended_at = meter.timer()
        if error is not None:
            self.outcome = Outcome.of_error(error)
            if not self.started_at:
                self.status = _status_of(error)
        elif self._whole:
            outcome = Outcome.of_status(self.status)
            broken = self._broken and outcome is Outcome.OK
            self.outcome = Outcome.UPSTREAM_ERROR if broken else outcome
        meter.count(self)
        if log.isEnabledFor(logging.DEBUG):
            self._log()

    def _log(self) -> None:
        log.debug(
            "proxied call",
            extra={
                "outcome": self.outcome,
                "status": self.status,
                "streaming": self.streaming,
                "seconds": round(self.ended_at - self.began_at, 6),
                "session_id": self.session_id,
                "rollout_id": self.rollout_id,
                "candidate_id": self.candidate_id,
            },
        )


def unread() -> MeteredCall:
    """The no-op meter."""
    return MeteredCall(_UNREAD)


def _status_of(error: BaseException) -> int:
    """The status that the caller is told instead of an answer; 0 if nothing."""
    if isinstance(error, asyncio.CancelledError):
        return 0
    status = error.status if isinstance(error, MiproError) else 500
    return status if 400 <= status <= 599 else 500


_UNREAD = CallMeter()
