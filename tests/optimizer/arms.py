"""Arms and duels for the optimizer's tests, written shortly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.models.candidates import (
    Arm,
    Duel,
    DuelObservation,
    RewardBlock,
    Statistics,
)
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import DEFAULT_SCALES, Posterior, Scales, posterior

START = datetime(2025, 1, 1, tzinfo=UTC)


def arm(
    instruction: int,
    demonstrations: int,
    *,
    rewards: int = 0,
    mean: float = 0.0,
    in_flight: int = 0,
    missing: int = 0,
) -> Arm:
    """A candidate named by its levers, `1.1` for the baseline, with 0/1 rewards of that mean."""
    total = round(rewards * mean, 9)
    return Arm(
        candidate_id=f"{instruction}.{demonstrations}",
        levers=(instruction, demonstrations),
        statistics=Statistics(
            rollouts=rewards + in_flight + missing,
            rewards=rewards,
            missing=missing,
            reward_sum=total,
            reward_square_sum=total,
        ),
    )


def grid(
    instructions: int, demonstrations: int, *, rewards: int = 0, mean: float = 0.0
) -> list[Arm]:
    """Every combination of so many versions."""
    return [
        arm(i, d, rewards=rewards, mean=mean)
        for i in range(1, instructions + 1)
        for d in range(1, demonstrations + 1)
    ]


def block(
    candidate_id: str,
    first: int,
    *,
    rewards: int,
    mean: float,
    deviation_sum: float = 0.0,
    epoch: int = 1,
) -> RewardBlock:
    """What a candidate earned in the stretch of 50 rollouts from `first`, in 0/1 rewards."""
    return RewardBlock(
        epoch=epoch,
        first=first,
        last=first + 49,
        candidate_id=candidate_id,
        rewards=rewards,
        reward_sum=rewards * mean,
        reward_square_sum=rewards * mean,
        deviation_sum=deviation_sum,
    )


def believed(arms: Sequence[Arm], scales: Scales = DEFAULT_SCALES) -> Posterior:
    """The belief from the arms' statistics."""
    return posterior(Evidence.of(arms), scales=scales)


def duel(champion_id: str = "1.1", challenger_id: str = "2.2", **fields: Any) -> Duel:
    return Duel(
        **{
            "session_id": "session",
            "number": 1,
            "champion_id": champion_id,
            "challenger_id": challenger_id,
            "predicted_lift": 0.1,
            "started_at": START,
            **fields,
        }
    )


def observations(
    is_challenger: Iterable[bool], rewards: Sequence[float] | NDArray[np.float64]
) -> list[DuelObservation]:
    """Rewards of a duel in order, each predicted by the mean of those before it."""
    values = np.asarray(rewards, dtype=np.float64)
    before = np.concatenate([[0.0], values.cumsum()[:-1]])
    predictions = (before + 1.0) / (np.arange(len(values)) + 2.0)
    return [
        DuelObservation.model_construct(is_challenger=side, reward=reward, predicted_reward=guess)
        for side, reward, guess in zip(is_challenger, values, predictions, strict=True)
    ]
