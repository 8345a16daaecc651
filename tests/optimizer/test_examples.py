"""What an example is expected to earn beyond others follows what it earned, with reserve."""

from __future__ import annotations

import numpy as np
import pytest

from prefect_mipro.optimizer.examples import PSEUDO_REWARDS, expected_deviation


def test_an_example_that_was_never_rewarded_is_like_the_others() -> None:
    assert expected_deviation(0, 0.0) == 0.0


def test_few_rewards_are_held_back_and_many_speak_for_themselves() -> None:
    assert expected_deviation(3, 1.5) == pytest.approx(0.25)
    assert expected_deviation(4_000, 2_000.0) == pytest.approx(0.5, abs=0.001)


def test_it_predicts_better_than_the_raw_mean_and_than_nothing() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(0.0, 0.2, 2_000)
    noise_sd = 0.2 * np.sqrt(PSEUDO_REWARDS)
    for rewards in (1, 3, 10):
        sums = rng.normal(effects * rewards, noise_sd * np.sqrt(rewards))
        shrunk = np.array([expected_deviation(rewards, float(total)) for total in sums])
        error = np.mean((shrunk - effects) ** 2)
        assert error < np.mean((sums / rewards - effects) ** 2)
        assert error < np.mean(effects**2)
