"""Stopping: which rule of the config ends a session."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_mipro.config import PromptLearning


@dataclass(frozen=True)
class Progress:
    """What a session has used and reached so far; `cost_usd` is known where prices are.

    `exploration_value` is what knowing every candidate's mean reward would add to the best one's
    (`Posterior.exploration_value`); `None` while there is nothing to compare.
    """

    rollouts: int
    seconds: float
    tokens: int
    cost_usd: float | None
    promotions: int
    rollouts_since_promotion: int
    exploration_value: float | None = None


def has_budget(config: PromptLearning) -> bool:
    """Whether any budget is set."""
    return any(limit is not None for limit in _budgets(config).values())


def has_goal(config: PromptLearning) -> bool:
    """Whether any goal is set."""
    limits = config.termination_config
    goals = (
        limits.max_promotions,
        limits.max_trials_without_improvement,
        limits.min_exploration_value,
    )
    return any(goal is not None for goal in goals)


def used_up(config: PromptLearning, progress: Progress) -> str:
    """The budget that is used up, in words with its name in the config; empty when none is."""
    used_of = {
        "termination_config.max_rollouts": progress.rollouts,
        "mipro.rollout.budget": progress.rollouts,
        "termination_config.max_tokens": progress.tokens,
        "termination_config.max_cost_usd": progress.cost_usd,
        "termination_config.max_seconds": progress.seconds,
    }
    for name, limit in _budgets(config).items():
        used = used_of[name]
        if limit is not None and used is not None and used >= limit:
            return f"{name} of {limit:g} is used up"
    return ""


def reached(config: PromptLearning, progress: Progress) -> str:
    """The goal that is reached, in words with its name in the config; empty when none is.

    Evidence (so many duels won), a plateau (none won for so long), or nothing left to explore.
    """
    limits = config.termination_config
    if limits.max_promotions is not None and progress.promotions >= limits.max_promotions:
        return f"termination_config.max_promotions of {limits.max_promotions} is reached"
    longest = limits.max_trials_without_improvement
    if longest is not None and progress.rollouts_since_promotion >= longest:
        return (
            f"no promotion in {longest} rollouts "
            "(termination_config.max_trials_without_improvement)"
        )
    value, least = progress.exploration_value, limits.min_exploration_value
    if least is not None and value is not None and value < least:
        return (
            f"exploring could add {value:.4f} to the mean reward, less than {least:g} "
            "(termination_config.min_exploration_value)"
        )
    return ""


def _budgets(config: PromptLearning) -> dict[str, float | None]:
    limits = config.termination_config
    return {
        "termination_config.max_rollouts": limits.max_rollouts,
        "mipro.rollout.budget": config.mipro.rollout.budget,
        "termination_config.max_tokens": limits.max_tokens,
        "termination_config.max_cost_usd": limits.max_cost_usd,
        "termination_config.max_seconds": limits.max_seconds,
    }
