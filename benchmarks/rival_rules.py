"""Rules that others promote by: what each would do on a session's rewards, looked at after each.

Each judges the leader, the candidate with the highest raw mean of its own, against the baseline,
once both have ten rewards (TensorZero's `min_samples_per_variant`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulation import CANDIDATES, Vector

Whole = int | NDArray[np.integer[Any]]

FEWEST_REWARDS = 10
ALPHA = 0.05
ONE_SIDED_Z = 1.6449
SMALLEST_VARIANCE = 1e-12
MOST_REWARDS = 10_000


class Rule(StrEnum):
    """A rule, in the report's words."""

    Z_TEST = "z-test, p < .05"
    BETA = "Beta posterior, P > .95"
    GLR = "GLR, TensorZero's bound"
    MODEL = "our model, P > .95"


@dataclass(frozen=True)
class Comparison:
    """Leader and baseline after `total` rewards of the session: their rewards and successes."""

    total: int
    leader: int
    counts: tuple[int, int]
    successes: tuple[int, int]

    @property
    def means(self) -> tuple[float, float]:
        return self.successes[0] / self.counts[0], self.successes[1] / self.counts[1]


class Rival(Protocol):
    def __call__(self, seen: Comparison) -> bool: ...


def z_test(seen: Comparison) -> bool:
    """The two-proportion z-test with pooled variance, one-sided."""
    pooled = sum(seen.successes) / sum(seen.counts)
    variance = pooled * (1.0 - pooled) * sum(1.0 / count for count in seen.counts)
    leader, baseline = seen.means
    return leader - baseline > ONE_SIDED_Z * math.sqrt(variance)


def beta_posterior(seen: Comparison) -> bool:
    """P(leader better) > .95 under Beta(1, 1) priors, exactly.

    The finite sum of Evan Miller, "Formulas for Bayesian A/B testing" (2015).
    """
    a1, a0 = (successes + 1 for successes in seen.successes)
    b1, b0 = (
        count - successes + 1 for count, successes in zip(seen.counts, seen.successes, strict=True)
    )
    i = np.arange(a1)
    terms = _log_beta(a0 + i, b0 + b1) - np.log(b1 + i) - _log_beta(1 + i, b1)
    return float(np.exp(terms - _log_beta(a0, b0)).sum()) > 1.0 - ALPHA


def likelihood_ratio(seen: Comparison) -> bool:
    """The Gaussian GLR with empirical variances against ln((1 + ln t) / delta).

    As in `track_and_stop/check_stopping.rs` of TensorZero, which asks it of the leader against
    every other; here against the baseline alone.
    """
    leader, baseline = seen.means
    noise = sum(
        max(mean * (1.0 - mean), SMALLEST_VARIANCE) / count
        for mean, count in zip(seen.means, seen.counts, strict=True)
    )
    ratio = max(0.0, leader - baseline) ** 2 / (2.0 * noise)
    return ratio > math.log((1.0 + math.log(seen.total)) / ALPHA)


RIVALS: Mapping[Rule, Rival] = {
    Rule.Z_TEST: z_test,
    Rule.BETA: beta_posterior,
    Rule.GLR: likelihood_ratio,
}


def first_promotion(
    rule: Rival, candidates: NDArray[np.int64], rewards: NDArray[np.uint8]
) -> tuple[int, int] | None:
    """After which reward the rule would first promote, from 0, and whom.

    `candidates` and `rewards` are those of a session in the order of arrival.
    """
    seen = (comparison for comparison in comparisons(candidates, rewards) if rule(comparison))
    first = next(seen, None)
    return (first.total - 1, first.leader) if first else None


def comparisons(candidates: NDArray[np.int64], rewards: NDArray[np.uint8]) -> Iterator[Comparison]:
    """Leader and baseline after each reward, where there is a leader."""
    served = candidates[:, None] == np.arange(CANDIDATES)
    counts = served.cumsum(axis=0)
    successes = (served * rewards[:, None]).cumsum(axis=0)
    judged = counts >= FEWEST_REWARDS
    means = np.where(judged, successes / np.maximum(counts, 1), -1.0)
    leaders = means[:, 1:].argmax(axis=1) + 1
    for n in np.flatnonzero(judged[:, 0] & judged[:, 1:].any(axis=1)).tolist():
        sides = [leaders[n], 0]
        yield Comparison(
            n + 1,
            int(leaders[n]),
            tuple(counts[n, sides].tolist()),
            tuple(successes[n, sides].tolist()),
        )


def _log_beta(a: Whole, b: Whole) -> Vector:
    """The log of the beta function of whole numbers."""
    return np.asarray(LOG_FACTORIALS[a - 1] + LOG_FACTORIALS[b - 1] - LOG_FACTORIALS[a + b - 1])


LOG_FACTORIALS = np.concatenate([[0.0], np.log(np.arange(1, MOST_REWARDS)).cumsum()])
