"""Stopping rules: each fires at its limit, under its name, and none fires by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefect_mipro.config import MiproConfig, PromptLearning
from prefect_mipro.optimizer.stopping import Progress, reached, used_up

PROGRESS = Progress(
    rollouts=400,
    seconds=60.0,
    tokens=10_000,
    cost_usd=1.5,
    promotions=1,
    rollouts_since_promotion=150,
    exploration_value=0.004,
)


def rules(**termination: Any) -> PromptLearning:
    table = {"algorithm": "mipro", "termination_config": termination}
    return MiproConfig.parse({"prompt_learning": table}).prompt_learning


def test_without_rules_nothing_ends_a_session() -> None:
    assert used_up(rules(), PROGRESS) == ""
    assert reached(rules(), PROGRESS) == ""


@pytest.mark.parametrize(
    ("rule", "limit", "under"),
    [
        ("max_rollouts", 400, 401),
        ("max_seconds", 60.0, 60.1),
        ("max_tokens", 10_000, 10_001),
        ("max_cost_usd", 1.5, 1.51),
    ],
)
def test_a_budget_is_used_up_at_its_limit_and_names_itself(
    rule: str, limit: float, under: float
) -> None:
    assert used_up(rules(**{rule: limit}), PROGRESS).startswith(f"termination_config.{rule} of ")
    assert used_up(rules(**{rule: under}), PROGRESS) == ""


def test_the_rollout_budget_of_the_mipro_table_counts_too() -> None:
    for budget, told in ((400, "mipro.rollout.budget of 400 is used up"), (401, "")):
        config = MiproConfig.parse(
            {"prompt_learning": {"algorithm": "mipro", "mipro": {"rollout": {"budget": budget}}}}
        )
        assert used_up(config.prompt_learning, PROGRESS) == told


def test_a_cost_that_is_not_known_uses_nothing_up() -> None:
    assert used_up(rules(max_cost_usd=0.01), replace(PROGRESS, cost_usd=None)) == ""


@pytest.mark.parametrize(
    ("rule", "limit", "beyond"),
    [
        ("max_promotions", 1, 2),
        ("max_trials_without_improvement", 150, 151),
        ("min_exploration_value", 0.005, 0.004),
    ],
)
def test_a_goal_is_reached_at_its_limit_and_names_itself(
    rule: str, limit: float, beyond: float
) -> None:
    assert rule in reached(rules(**{rule: limit}), PROGRESS)
    assert reached(rules(**{rule: beyond}), PROGRESS) == ""


def test_nothing_to_compare_is_no_sign_that_exploring_is_done() -> None:
    progress = replace(PROGRESS, exploration_value=None)
    assert reached(rules(min_exploration_value=0.5), progress) == ""
