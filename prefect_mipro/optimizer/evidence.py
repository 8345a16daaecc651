"""What the candidates earned, stretch by stretch of the traffic: all that belief rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.models.candidates import Arm, RewardBlock

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Counts and sums of the rewards of K candidates in B stretches of the traffic.

    `counts` and `sums` are (K, B); a sum is that of scaled rewards, less what their examples were
    expected to earn beyond others. `square_sum` pools the squares of all rewards. `pending` is (K,)
    rollouts in flight. Retired candidates count too: they teach about the levers that others share.
    """

    arms: tuple[Arm, ...]
    counts: Matrix
    sums: Matrix
    square_sum: float
    pending: Vector

    @classmethod
    def of(
        cls,
        arms: Sequence[Arm],
        blocks: Sequence[RewardBlock] | None = None,
        *,
        impute: float | None = None,
    ) -> Evidence:
        """From the reward blocks of one epoch, or without them from the arms' whole statistics.

        Missing rewards are left out, or each counts as the scaled reward `impute`; failed rollouts
        count as 0. Both are spread over the stretches as the others are. Blocks of other candidates
        are ignored.
        """
        if blocks is None:
            counts = _column([arm.statistics.rewards for arm in arms])
            sums = _column([arm.statistics.reward_sum for arm in arms])
            square_sum = sum(arm.statistics.reward_square_sum for arm in arms)
        else:
            counts, sums, square_sum = _tabulate(arms, blocks)
        failures = _column([arm.statistics.failures for arm in arms])
        if impute is not None:
            missing = _column([arm.statistics.missing for arm in arms])
            missing = np.maximum(missing - failures, 0.0) * _shares(counts)
            counts, sums = counts + missing, sums + impute * missing
            square_sum += impute**2 * float(missing.sum())
        if failures.any():
            counts = counts + failures * _shares(counts)
        pending = _column([max(0, arm.statistics.in_flight) for arm in arms])[:, 0]
        return cls(tuple(arms), counts, sums, square_sum, pending)

    @property
    def rewards(self) -> int:
        """How many rewards there are, imputed ones included."""
        return round(float(self.counts.sum()))

    def lever_rewards(self) -> Matrix:
        """How many rewards each candidate's lever versions have in all, (K, levers)."""
        levers = np.array([arm.levers for arm in self.arms])
        rewards = self.counts.sum(axis=1)
        same = levers[:, None, :] == levers[None, :, :]
        return np.asarray(np.einsum("jkl,k->jl", same, rewards))


def _column(values: Sequence[float]) -> Matrix:
    return np.array(values, dtype=np.float64)[:, None]


def _tabulate(arms: Sequence[Arm], blocks: Sequence[RewardBlock]) -> tuple[Matrix, Matrix, float]:
    """Counts and sums (K, B) with the stretches in order, and the pooled sum of squares."""
    rows = {arm.candidate_id: k for k, arm in enumerate(arms)}
    known = [block for block in blocks if block.candidate_id in rows]
    columns = {first: b for b, first in enumerate(sorted({block.first for block in known}))}
    counts = np.zeros((len(arms), max(1, len(columns))))
    sums = np.zeros_like(counts)
    for block in known:
        cell = rows[block.candidate_id], columns[block.first]
        counts[cell] += block.rewards
        sums[cell] += block.reward_sum - block.deviation_sum
    return counts, sums, sum(block.reward_square_sum for block in known)


def _shares(counts: Matrix) -> Vector:
    """The stretches' shares of all rewards, (B,); equal ones where there is none."""
    totals = counts.sum(axis=0)
    return totals / totals.sum() if totals.any() else np.full(len(totals), 1.0 / len(totals))
