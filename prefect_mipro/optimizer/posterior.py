"""The belief about every candidate's mean reward, derived from their statistics.

An additive random-effects model: a candidate's mean reward is a common level, plus one effect per
lever version it is made of, plus a small effect of its own. Candidates that share a lever version
learn from each other's rewards, so what is learned is some levers, not their every combination.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.models.candidates import Arm

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Fewer rewards than this say too little about their own spread.
FEWEST_FOR_VARIANCE = 10
LARGEST_VARIANCE = 0.25
SMALLEST_VARIANCE = 0.02


@dataclass(frozen=True)
class Scales:
    """Prior standard deviations of the effects, in units of the reward's standard deviation.

    `caution` is in units of reward: the prior mean falls by it for each lever that is not the
    caller's own; 0.02 suits a proposer that is as small as the policy model. The others were chosen
    by simulation: with smaller ones large lifts are found later, with larger ones more traffic is
    lost where lifts are small; between 0.15 and 0.3 for levers the difference is about a point.
    """

    lever: float = 0.2
    own: float = 0.1
    common: float = 0.6
    caution: float = 0.0


@dataclass(frozen=True, eq=False)
class Posterior:
    """A joint Gaussian over the mean rewards of K candidates.

    `mean` is (K,), `covariance` is (K, K); `reward_variance` is that of a single reward.
    """

    arms: tuple[Arm, ...]
    mean: Vector
    covariance: Matrix
    reward_variance: float

    def index(self, candidate_id: str) -> int:
        """Where the candidate stands. Raises KeyError when it is not one of the arms."""
        return self._positions[candidate_id]

    def draws(
        self, rng: np.random.Generator, count: int, *, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """`count` joint samples, (K, count). `temperature` scales the standard deviation."""
        noise = rng.standard_normal((len(self.arms), count))
        return self.mean[:, None] + temperature * (self._root @ noise)

    def interval(self, candidate_id: str, *, level: float = 0.95) -> tuple[float, float]:
        """The central interval of the mean reward, clipped to [0, 1]."""
        k = self.index(candidate_id)
        half = _normal_quantile(0.5 + level / 2) * math.sqrt(self.covariance[k, k])
        return _clip(self.mean[k] - half), _clip(self.mean[k] + half)

    def probability_better(self, candidate_id: str, *, than: str, margin: float = 0.0) -> float:
        """P(mean reward of the one > mean reward of the other + margin)."""
        a, b = self.index(candidate_id), self.index(than)
        cov = self.covariance
        spread = math.sqrt(max(cov[a, a] + cov[b, b] - 2 * cov[a, b], 1e-12))
        return _normal_cdf((self.mean[a] - self.mean[b] - margin) / spread)

    def probability_best(self, rng: np.random.Generator, *, draws: int = 512) -> Vector:
        """P(candidate has the highest mean reward), (K,), by sampling."""
        best = self.draws(rng, draws).argmax(axis=0)
        return np.bincount(best, minlength=len(self.arms)) / draws

    def exploration_value(
        self, rng: np.random.Generator, *, active: Sequence[str], draws: int = 512
    ) -> float:
        """What perfect knowledge could still add: E[max] - max E over the active candidates.

        The expected value of perfect information (Raiffa and Schlaifer 1961), in units of reward.
        """
        rows = [self.index(candidate_id) for candidate_id in active]
        drawn = self.draws(rng, draws)[rows]
        return max(0.0, float(drawn.max(axis=0).mean() - self.mean[rows].max()))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {arm.candidate_id: k for k, arm in enumerate(self.arms)}

    @cached_property
    def _root(self) -> Matrix:
        return _square_root(self.covariance)


DEFAULT_SCALES = Scales()


def posterior(arms: Sequence[Arm], *, scales: Scales = DEFAULT_SCALES) -> Posterior:
    """Condition the prior on the arms' statistics; the arms' order is kept.

    Gaussian regression with known noise (Rasmussen and Williams 2006, algorithm 2.1) on one row
    per candidate. The matrix that is factored is the identity plus something positive, so it is
    never singular, whatever the statistics and however many arms share their levers.
    """
    counts = np.array([arm.statistics.rewards for arm in arms], dtype=np.float64)
    sums = np.array([arm.statistics.reward_sum for arm in arms], dtype=np.float64)
    total = counts.sum()
    level = (sums.sum() + 1.0) / (total + 2.0)
    variance = _reward_variance(arms)
    prior_mean = level - scales.caution * _new_levers(arms)
    prior = variance * _prior_correlation(arms, scales)

    weight = np.sqrt(counts / variance)
    factor = np.linalg.cholesky(np.eye(len(arms)) + weight[:, None] * prior * weight)
    gain = np.linalg.solve(factor, weight[:, None] * prior)
    with np.errstate(invalid="ignore", divide="ignore"):
        surprise = np.where(counts > 0, weight * (sums / counts - prior_mean), 0.0)
    mean = prior_mean + gain.T @ np.linalg.solve(factor, surprise)
    covariance = prior - gain.T @ gain
    return Posterior(tuple(arms), mean, covariance, variance)


def _prior_correlation(arms: Sequence[Arm], scales: Scales) -> Matrix:
    """Prior covariance of the mean rewards in units of the reward variance."""
    levers = np.array([arm.levers for arm in arms])
    shared = (levers[:, None, :] == levers[None, :, :]).sum(axis=2)
    covariance: Matrix = scales.common**2 + scales.lever**2 * shared
    covariance += scales.own**2 * np.eye(len(arms))
    return covariance


def _new_levers(arms: Sequence[Arm]) -> Vector:
    """How many levers of each arm are not the caller's own."""
    return np.array([sum(version > 1 for version in arm.levers) for arm in arms], dtype=np.float64)


def _reward_variance(arms: Sequence[Arm]) -> float:
    """The pooled variance of a single reward."""
    count = sum(arm.statistics.rewards for arm in arms)
    if count < FEWEST_FOR_VARIANCE:
        return LARGEST_VARIANCE
    mean = sum(arm.statistics.reward_sum for arm in arms) / count
    square = sum(arm.statistics.reward_square_sum for arm in arms) / count
    return max(SMALLEST_VARIANCE, square - mean**2)


def _square_root(covariance: Matrix) -> Matrix:
    """A matrix R with R R' = covariance, for a covariance that may have lost rank to rounding."""
    jitter = 1e-9 * np.trace(covariance) / len(covariance)
    try:
        return np.linalg.cholesky(covariance + jitter * np.eye(len(covariance)))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, float(value)))
