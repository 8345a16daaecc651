"""The belief about every candidate's mean reward, derived from their statistics.

An additive random-effects model: a candidate's mean reward is a common level, plus one effect per
lever version it is made of, plus a small effect of its own. Candidates that share a lever version
learn from each other's rewards, so what is learned is some levers, not their every combination.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.models.candidates import Arm
from prefect_mipro.optimizer.evidence import Evidence, Matrix, Vector

# Fewer rewards than this say too little about their own spread.
FEWEST_FOR_VARIANCE = 10
LARGEST_VARIANCE = 0.25
SMALLEST_VARIANCE = 0.02

# How many times larger than the prior says the effects may be, and how likely each is at first. A
# baseline of 0.08 among candidates of up to 0.75 lies within its 95 % interval in 91 of 100
# sessions with them, in 79 without; what exploring costs elsewhere is the same within noise.
MULTIPLES = np.array([1.0, 2.0, 4.0])
MULTIPLE_LOG_PRIOR = np.log([0.7, 0.2, 0.1])


@dataclass(frozen=True)
class Scales:
    """Prior standard deviations of the effects, in units of the reward's standard deviation.

    `stretch` is the effect of a stretch of the traffic, on all candidates alike. `caution` is in
    units of reward: the prior mean falls by it for each lever that is not the caller's own; 0.02
    suits a proposer that is as small as the policy model. The others were chosen by simulation
    (`benchmarks/simulation.py`, 100 seeds that the benchmark does not use): with 0.15 and 0.08 for
    `lever` and `own`, 2,000 rollouts cost 2 +- 5 less on rich surfaces and 6 +- 5 less on hard
    ones; the larger ones suit effects that are larger than simulated.
    """

    lever: float = 0.2
    own: float = 0.1
    common: float = 0.6
    stretch: float = 0.1
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

    def probability_best(
        self, rng: np.random.Generator, *, active: Sequence[str], draws: int = 512
    ) -> Vector:
        """P(candidate has the highest mean reward of the active ones), (K,), by sampling."""
        rows = np.array([self.index(candidate_id) for candidate_id in active])
        best = rows[self.among(active).draws(rng, draws).argmax(axis=0)]
        return np.bincount(best, minlength=len(self.arms)) / draws

    def exploration_value(
        self, rng: np.random.Generator, *, active: Sequence[str], draws: int = 512
    ) -> float:
        """What perfect knowledge could still add: E[max] - max E over the active candidates.

        The expected value of perfect information (Raiffa and Schlaifer 1961), in units of reward.
        """
        belief = self.among(active)
        best = belief.draws(rng, draws).max(axis=0)
        return max(0.0, float(best.mean() - belief.mean.max()))

    def among(self, candidate_ids: Sequence[str]) -> Posterior:
        """The belief about some of the candidates, in that order."""
        rows = [self.index(candidate_id) for candidate_id in candidate_ids]
        arms = tuple(self.arms[k] for k in rows)
        return replace(
            self, arms=arms, mean=self.mean[rows], covariance=self.covariance[np.ix_(rows, rows)]
        )

    def awaiting(self, pending: Vector) -> Posterior:
        """The belief for drawing while (K,) rollouts are in flight: as if rewarded by their mean.

        (Desautels, Krause and Burdick, "Parallelizing exploration-exploitation tradeoffs", JMLR
        2014, section 4.) With 16 in flight it makes no difference beyond noise, by simulation.
        """
        rows = np.flatnonzero(pending)
        if not len(rows):
            return self
        cov = self.covariance
        seen = cov[np.ix_(rows, rows)] + np.diag(self.reward_variance / pending[rows])
        known = np.linalg.solve(np.linalg.cholesky(seen), cov[rows])
        return replace(self, covariance=cov - known.T @ known)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {arm.candidate_id: k for k, arm in enumerate(self.arms)}

    @cached_property
    def _root(self) -> Matrix:
        return _square_root(self.covariance)


DEFAULT_SCALES = Scales()


def posterior(evidence: Evidence, *, scales: Scales = DEFAULT_SCALES) -> Posterior:
    """Condition the prior on the evidence; the arms' order is kept.

    Gaussian regression with known noise (Rasmussen and Williams 2006, section 2.2) on sums per
    candidate and stretch, which say all that the single rewards would. How large the effects are
    in this session is learned: the belief is averaged over multiples of the prior's scales by their
    marginal likelihood (section 5.2 there), mean and covariance each. The eigenvalues divided by
    are at least one: never singular, whatever the statistics, however many arms share levers.
    """
    variance = _reward_variance(evidence)
    level = (evidence.sums.sum() + 1.0) / (evidence.counts.sum() + 2.0)
    prior_mean = level - scales.caution * _new_levers(evidence.arms)
    information, surprise = _information(evidence, prior_mean, variance, scales)

    root = _square_root(variance * _prior_correlation(evidence.arms, scales))
    values, vectors = np.linalg.eigh(root.T @ information @ root)
    basis = root @ vectors
    pull = surprise @ basis
    precision = 1.0 / MULTIPLES[:, None] ** 2 + np.maximum(values, 0.0)
    weights = _weights(precision, pull)
    shifts = (pull / precision) @ basis.T
    shift = weights @ shifts
    apart = (shifts - shift) * np.sqrt(weights)[:, None]
    covariance = (basis * (weights @ (1.0 / precision))) @ basis.T + apart.T @ apart
    return Posterior(evidence.arms, prior_mean + shift, covariance, variance)


def _information(
    evidence: Evidence, prior_mean: Vector, variance: float, scales: Scales
) -> tuple[Matrix, Vector]:
    """The rewards' information about the mean rewards (K, K), and that times the surprise (K,).

    A stretch's own effect is integrated out: of its rewards it takes what they say in common.
    """
    counts = evidence.counts
    excess = evidence.sums - counts * prior_mean[:, None]
    information = np.diag(counts.sum(axis=1))
    surprise = excess.sum(axis=1)
    if counts.shape[1] > 1 and scales.stretch > 0:
        absorbed = counts / (counts.sum(axis=0) + scales.stretch**-2)
        information -= absorbed @ counts.T
        surprise -= absorbed @ excess.sum(axis=0)
    return information / variance, surprise / variance


def _weights(precision: Matrix, pull: Vector) -> Vector:
    """The probability of each multiple of the scales; both arguments are in the joint eigenbasis.

    `precision` is (multiples, K), its rows 1/m^2 + eigenvalue.
    """
    occam = -0.5 * np.log(precision * MULTIPLES[:, None] ** 2).sum(axis=1)
    fit = 0.5 * (pull**2 / precision).sum(axis=1)
    log_weights = MULTIPLE_LOG_PRIOR + occam + fit
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


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


def _reward_variance(evidence: Evidence) -> float:
    """The pooled variance of a single reward."""
    count = evidence.counts.sum()
    if count < FEWEST_FOR_VARIANCE:
        return LARGEST_VARIANCE
    mean = evidence.sums.sum() / count
    return max(SMALLEST_VARIANCE, float(evidence.square_sum / count - mean**2))


def _square_root(covariance: Matrix) -> Matrix:
    """A matrix R with R R' = covariance, for a covariance that may have lost rank to rounding."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, float(value)))
