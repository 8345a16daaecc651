"""Counters and histograms in plain numbers, shown to Prometheus when it asks.

One event loop feeds them, so they take no locks: counting costs a fifth of what it does in the
library's own classes, which a proxied call would notice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter by labels. `known` are those that are shown from the start, with zero.

    Series that are there before their first event can be seen to rise.
    """

    def __init__(
        self, name: str, meaning: str, labels: Labels = (), *, known: Iterable[Labels] = ()
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = labels
        self._counts: dict[Labels, float] = dict.fromkeys(known if labels else [()], 0)

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count what happened, `amount` times."""
        self._counts[labels] = self._counts.get(labels, 0) + amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class Distribution(Collector):
    """A histogram for one label `streaming`, whose values are false and true."""

    def __init__(self, name: str, meaning: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._meaning = meaning
        self._bounds = bounds
        self._counts = tuple([0] * (len(bounds) + 1) for _ in STREAMING)
        self._sums = [0.0, 0.0]

    def observe(self, streaming: bool, value: float) -> None:
        """Count a value in the first bucket that is not below it."""
        self._counts[streaming][bisect_left(self._bounds, value)] += 1
        self._sums[streaming] += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=("streaming",))
        bounds = [*map(str, self._bounds), "+Inf"]
        for label, counts, total in zip(STREAMING, self._counts, self._sums, strict=True):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric((label,), buckets, total)
        yield family


STREAMING = ("false", "true")
