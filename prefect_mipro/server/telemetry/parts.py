"""What parts of the server count themselves, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prefect_mipro.server.upstream.interface import UpstreamCounts


class JournalCounts(Protocol):
    """What a journal has done with recordings so far."""

    @property
    def written(self) -> int: ...
    @property
    def batches(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def refused(self) -> int: ...


class Journal(Protocol):
    """A queue of recordings on their way to the store."""

    @property
    def counts(self) -> JournalCounts: ...
    @property
    def waiting(self) -> int: ...
    @property
    def capacity(self) -> int: ...


class JournalCollector(Collector):
    """A journal's queue, and what it has done."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        journal, counts = self._journal, self._journal.counts
        yield GaugeMetricFamily(
            "mipro_journal_recordings", "Recorded calls that wait to be written.", journal.waiting
        )
        yield GaugeMetricFamily(
            "mipro_journal_capacity",
            "How many may wait before calls are refused.",
            journal.capacity,
        )
        for name, meaning, count in (
            ("written", "Recorded calls that are in the store.", counts.written),
            ("batches", "Transactions in which they were written.", counts.batches),
            ("failures", "Transactions that the store refused.", counts.failures),
            ("lost", "Recorded calls that could not be written for good.", counts.lost),
            (
                "refused",
                "Calls refused: too many under way, too many to write, or no writes taken.",
                counts.refused,
            ),
        ):
            yield CounterMetricFamily(f"mipro_journal_{name}", meaning, count)


class UpstreamCollector(Collector):
    """The providers' calls, by the provider's name."""

    def __init__(self, read: Callable[[], Mapping[str, UpstreamCounts]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        by_name = ("provider",)
        in_flight = GaugeMetricFamily(
            "mipro_upstream_calls_in_flight", "Calls that a provider is busy with.", labels=by_name
        )
        waiting = GaugeMetricFamily(
            "mipro_upstream_calls_waiting",
            "Calls that wait for a provider's limits.",
            labels=by_name,
        )
        refused = CounterMetricFamily(
            "mipro_upstream_calls_refused", "Calls beyond a provider's limits.", labels=by_name
        )
        repeats = CounterMetricFamily(
            "mipro_upstream_repeats",
            "Calls that were sent again before their first byte.",
            labels=("provider", "cause"),
        )
        fallbacks = CounterMetricFamily(
            "mipro_upstream_fallbacks", "Calls that another model got.", labels=by_name
        )
        for name, counts in self._read().items():
            in_flight.add_metric((name,), counts.in_flight)
            waiting.add_metric((name,), counts.waiting)
            refused.add_metric((name,), counts.refused)
            fallbacks.add_metric((name,), counts.fallbacks)
            for cause, count in list(counts.repeats.items()):
                repeats.add_metric((name, cause), count)
        yield from (in_flight, waiting, refused, repeats, fallbacks)
