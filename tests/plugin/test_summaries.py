"""Evaluations and the interval they carry."""

from __future__ import annotations

import pytest

from prefect_mipro.models.summaries import Evaluation, wilson_interval


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    [
        # Newcombe 1998, table I, score method: 81/263, 15/148, 0/20, 1/29.
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_published_values(
    mean: float, count: int, low: float, high: float
) -> None:
    assert wilson_interval(mean, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_without_observations_is_everything() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_wilson_interval_stays_within_bounds_at_a_perfect_mean() -> None:
    low, high = wilson_interval(1.0, 10)
    assert 0.7 < low < high <= 1.0


def test_an_evaluation_counts_its_examples_and_their_mean() -> None:
    evaluation = Evaluation.of("cand_1", [1.0, 0.0, 1.0, 1.0], failures=1)
    assert (evaluation.examples, evaluation.failures, evaluation.mean_reward) == (4, 1, 0.75)
    assert evaluation.interval == wilson_interval(0.75, 4)


def test_an_evaluation_without_examples_knows_nothing() -> None:
    assert Evaluation.of("cand_1", []).interval == (0.0, 1.0)
