"""What one app shows to Prometheus: its own counts, those of its parts, what the store knows."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable, Iterator
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prefect_mipro import __version__
from prefect_mipro.errors import MiproError
from prefect_mipro.models.levers import LeverName
from prefect_mipro.server.store.records import Overview
from prefect_mipro.server.telemetry.calls import CallMeter, Timer
from prefect_mipro.server.telemetry.counts import Tally

OVERVIEW_FRESH_SECONDS = 5.0
OVERVIEW_TIMEOUT_SECONDS = 5.0

log = logging.getLogger(__name__)


class RewardOutcome(StrEnum):
    """What became of a reward that was sent."""

    ATTACHED = "attached"
    WAITING = "waiting"
    DUPLICATE = "duplicate"
    REFUSED = "refused"
    FAILED = "failed"

    @classmethod
    def of_error(cls, error: Exception) -> RewardOutcome:
        """Whether the caller, or this server, is to look at it."""
        refused = isinstance(error, MiproError) and error.status < 500
        return cls.REFUSED if refused else cls.FAILED


class RoundOutcome(StrEnum):
    """How a proposal round ended that was due."""

    FINISHED = "finished"
    MODEL_FAILED = "model_failed"
    FAILED = "failed"


class Meters:
    """The counts of one app, in a registry of its own."""

    def __init__(self, *, timer: Timer = time.perf_counter) -> None:
        self.registry = CollectorRegistry()
        self.calls = CallMeter(timer=timer)
        self.rewards = Tally(
            "mipro_rewards",
            "Rewards that were sent to this process.",
            ("outcome",),
            known=((outcome,) for outcome in RewardOutcome),
        )
        self.proposal_rounds = Tally(
            "mipro_proposal_rounds",
            "Proposal rounds that were due, by how they ended in this process.",
            ("outcome",),
            known=((outcome,) for outcome in RoundOutcome),
        )
        self.lever_versions = Tally(
            "mipro_lever_versions",
            "Lever versions that this process has made: instructions, sets of demonstrations.",
            ("lever",),
            known=((lever,) for lever in LeverName),
        )
        self.proposer_tokens = Tally(
            "mipro_proposer_tokens",
            "Tokens of proposer models, as upstreams count them.",
            ("kind",),
            known=(("prompt",), ("completion",)),
        )
        self._overview: StoreCollector | None = None
        for collector in (
            self.calls,
            self.rewards,
            self.proposal_rounds,
            self.lever_versions,
            self.proposer_tokens,
        ):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("mipro_build", "What is running here.", registry=self.registry).info(
            {"version": __version__, "python": platform.python_version()}
        )

    def watch(self, collector: Collector) -> None:
        """Show what a part of the app counts, too."""
        self.registry.register(collector)

    def watch_store(self, read: Callable[[], Awaitable[Overview]]) -> None:
        """Show what the store knows of all sessions, read again when it is asked for."""
        self._overview = StoreCollector(read, timer=self.calls.timer)
        self.registry.register(self._overview)

    async def refresh(self) -> None:
        """Read from the store what is too old to be shown. Never raises for the store's sake."""
        if self._overview is not None:
            await self._overview.refresh()


class StoreCollector(Collector):
    """What the store knows of all sessions, at most some seconds old.

    A store that does not answer leaves `mipro_store_up` at 0 and the rest out, for old numbers
    would look like good ones.
    """

    def __init__(self, read: Callable[[], Awaitable[Overview]], *, timer: Timer) -> None:
        self._read = read
        self._timer = timer
        self._reading = asyncio.Lock()
        self._overview: Overview | None = None
        self._fresh_until = float("-inf")

    async def refresh(self) -> None:
        """Read it again unless it is fresh. Scrapes at one moment share one read."""
        async with self._reading:
            if self._timer() < self._fresh_until:
                return
            try:
                async with asyncio.timeout(OVERVIEW_TIMEOUT_SECONDS):
                    self._overview = await self._read()
            except (MiproError, TimeoutError) as error:
                self._overview = None
                log.warning("store not read for metrics", extra={"error": type(error).__name__})
            self._fresh_until = self._timer() + OVERVIEW_FRESH_SECONDS

    def collect(self) -> Iterator[Metric]:
        overview = self._overview
        yield GaugeMetricFamily(
            "mipro_store_up",
            "Whether the store has answered the last scrape.",
            overview is not None,
        )
        for name, field, meaning in _BY_STATE:
            family = GaugeMetricFamily(name, meaning, labels=("session_state",))
            for state, totals in overview.by_state.items() if overview else ():
                family.add_metric((state,), getattr(totals, field))
            yield family
        candidates = GaugeMetricFamily(
            "mipro_candidates", "Candidates of all sessions.", labels=("state",)
        )
        if overview:
            candidates.add_metric(("active",), overview.active_candidates)
            candidates.add_metric(("retired",), overview.retired_candidates)
        yield candidates


_BY_STATE = (
    ("mipro_sessions", "sessions", "Sessions."),
    ("mipro_session_rollouts", "rollouts", "Rollouts of sessions that are in the state now."),
    ("mipro_session_rewards", "rewards", "Rewards of sessions that are in the state now."),
    (
        "mipro_session_missing_rewards",
        "missing",
        "Rollouts, of sessions that are in the state now, that were given up without a reward.",
    ),
    ("mipro_session_promotions", "promotions", "Promotions in sessions that are in the state now."),
)
