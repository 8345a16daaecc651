"""What the optimization loop gives back: rollout results, evaluations and the summary of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from prefect_mipro.models.base import Record
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.sessions import SessionState

Z_95 = 1.959963984540054


class RolloutOutcome(StrEnum):
    """How a rollout ended.

    Its reward counted, it will come later, it was there before, the session had ended, or the
    program or its reward function raised.
    """

    REWARDED = "rewarded"
    UNREWARDED = "unrewarded"
    REPEATED = "repeated"
    TOO_LATE = "too_late"
    FAILED = "failed"


class RolloutResult(Record):
    """One rollout: what the program answered, and what that was worth.

    `score` is what the reward function said, unscaled. `candidate_id` is known once a reward
    counts. `error` is empty unless the program or its reward function raised. `prompt_applied` is
    whether the candidate's prompt was in any of its calls: where it is false, the rollout says
    nothing about its candidate. It is `None` where that is not known before the reward.
    """

    rollout_id: str
    outcome: RolloutOutcome
    example_id: str | None = None
    candidate_id: str | None = None
    answer: Any = None
    score: float | None = None
    error: str = ""
    prompt_applied: bool | None = None
    seconds: float


class RewardOutcome(StrEnum):
    """What became of a reward that was reported for a rollout.

    It counted, it was there before, the rollout has another reward already, nobody knows the
    rollout (its reward is kept until it comes), the session was cancelled before, the reward
    itself is none, or the rollout is the future of a task run that failed.
    """

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    CONFLICTING = "conflicting"
    UNKNOWN = "unknown"
    TOO_LATE = "too_late"
    INVALID = "invalid"
    FAILED = "failed"


class RewardReport(Record):
    """What became of many rewards: the ids of their rollouts by outcome.

    `problems` says by rollout id why a reward was refused. A rollout that failed has no id, but its
    place, such as `rewards[2]`. `unapplied_rollouts` is how many of the rollouts ran without their
    candidate's prompt: their rewards are kept, and teach nothing.
    """

    session_id: str
    rollout_ids: dict[RewardOutcome, tuple[str, ...]]
    problems: dict[str, str]
    unapplied_rollouts: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many of each outcome, zeros included."""
        return {outcome.value: len(ids) for outcome, ids in self.rollout_ids.items()}

    @property
    def accepted(self) -> int:
        """How many were taken now."""
        return len(self.rollout_ids[RewardOutcome.ACCEPTED])

    @property
    def settled(self) -> frozenset[str]:
        """The rollouts that need no further report.

        An invalid reward is to be put right, and a failed rollout to be run again. A reward for an
        unknown rollout may have been sent to the wrong session, and to report it again does no
        harm.
        """
        open_ones = (RewardOutcome.FAILED, RewardOutcome.INVALID, RewardOutcome.UNKNOWN)
        return frozenset(
            rollout_id
            for outcome, ids in self.rollout_ids.items()
            if outcome not in open_ones
            for rollout_id in ids
        )


class Evaluation(Record):
    """A candidate on held-out examples, none of which the optimizer learned from.

    Rewards are scaled to [0, 1]; an example whose program raised counts as 0. `interval` is the
    95 % Wilson score interval: exact in spirit for rewards of 0 and 1 (accuracy), too wide for
    rewards in between, never too narrow. `unapplied_examples` were run without the candidate's
    prompt: they say nothing about it.
    """

    candidate_id: str
    examples: int
    failures: int
    mean_reward: float
    interval: tuple[float, float]
    unapplied_examples: int = 0

    @classmethod
    def of(
        cls,
        candidate_id: str,
        rewards: Sequence[float],
        *,
        failures: int = 0,
        unapplied_examples: int = 0,
    ) -> Evaluation:
        """From one reward per example, in [0, 1]."""
        mean = sum(rewards) / len(rewards) if rewards else 0.0
        return cls(
            candidate_id=candidate_id,
            examples=len(rewards),
            failures=failures,
            mean_reward=mean,
            interval=wilson_interval(mean, len(rewards)),
            unapplied_examples=unapplied_examples,
        )


class OptimizationSummary(Record):
    """What a run of the loop did and found. Counts cover this run, not the whole session.

    `unapplied_rollouts` ran without their candidate's prompt, so nothing was learned from them.
    """

    session_id: str
    state: SessionState
    rollouts: int
    rewarded: int
    failed: int
    unapplied_rollouts: int = 0
    mean_score: float | None
    candidates: int
    baseline_candidate_id: str
    best_candidate_id: str
    champion_candidate_id: str
    champion_instruction: str
    champion_demonstrations: tuple[Demonstration, ...]
    champion_mean_reward: float
    evaluations: tuple[Evaluation, ...] = ()
    artifact_keys: tuple[str, ...] = ()
    seconds: float

    @property
    def improved(self) -> bool:
        """Whether another candidate than the baseline is champion."""
        return self.champion_candidate_id != self.baseline_candidate_id

    def evaluation(self, candidate_id: str) -> Evaluation | None:
        """The evaluation of that candidate, if it was made."""
        return next((e for e in self.evaluations if e.candidate_id == candidate_id), None)


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); all of [0, 1] without observations."""
    if not count:
        return (0.0, 1.0)
    spread = Z_95**2 / count
    centre = (mean + spread / 2) / (1 + spread)
    half = math.sqrt(max(0.0, mean * (1 - mean)) * spread + spread**2 / 4) / (1 + spread)
    return (max(0.0, centre - half), min(1.0, centre + half))
