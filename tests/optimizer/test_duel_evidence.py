"""The evidence of a duel: it promotes falsely no oftener than it may, and proves what it can."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_mipro.models.candidates import DuelObservation
from prefect_mipro.optimizer.promotion import detectable_lift, log_evidence, log_evidence_against
from tests.optimizer.arms import observations

Predictor = Callable[[Sequence[DuelObservation]], float]
# The champion's rewards with their chances, and the challenger's.
Sides = tuple[dict[float, float], dict[float, float]]


def observation(is_challenger: bool, reward: float, predicted_reward: float) -> DuelObservation:
    return DuelObservation.model_construct(
        is_challenger=is_challenger, reward=reward, predicted_reward=predicted_reward
    )


def duels(
    count: int, rollouts: int, *, champion: float, challenger: float, seed: int
) -> list[list[DuelObservation]]:
    """Duels of 0/1 rewards with these chances of success."""
    rng = np.random.default_rng(seed)
    sides = rng.random((count, rollouts)) < 0.5
    rewards = rng.random((count, rollouts)) < np.where(sides, challenger, champion)
    return [observations(*pair) for pair in zip(sides, rewards.astype(float), strict=True)]


def share_won(
    played: list[list[DuelObservation]], *, predicted_lift: float, alpha: float = 0.05
) -> float:
    return share_proven(played, log_evidence, predicted_lift=predicted_lift, alpha=alpha)


def share_proven(
    played: list[list[DuelObservation]],
    evidence: Callable[..., NDArray[np.float64]],
    *,
    predicted_lift: float,
    alpha: float = 0.05,
) -> float:
    peaks = [evidence(seen, predicted_lift=predicted_lift).max() for seen in played]
    return float(np.mean(np.array(peaks) >= -math.log(alpha)))


# Evidence, by hand


def test_evidence_of_nothing_is_empty() -> None:
    assert log_evidence([], predicted_lift=0.1).shape == (0,)
    assert log_evidence_against([], predicted_lift=0.1).shape == (0,)


GRID = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)


def mixture(grid: Sequence[float], informed: Sequence[float]) -> float:
    """A tenth of the wealth is on the grid, the rest on the informed bets."""
    return math.log(0.1 * sum(grid) / 7 + 0.9 * sum(informed) / 3)


def test_a_success_of_the_challenger_where_half_was_expected() -> None:
    """It gains 1, the largest loss is 1; a quarter, half and all of the lift are the bets."""
    (evidence,) = log_evidence([observation(True, 1.0, 0.5)], predicted_lift=0.4)
    assert evidence == pytest.approx(mixture([1 + bet for bet in GRID], [1.1, 1.2, 1.4]))


def test_a_margin_is_taken_off_each_gain_and_added_to_the_largest_loss() -> None:
    """It gains 1 - 0.25, the largest loss is 1 + 0.25, and 0.45 - 0.25 is left to be expected."""
    seen = [observation(True, 1.0, 0.5)]
    (evidence,) = log_evidence(seen, predicted_lift=0.45, min_lift=0.25)
    grid = [1 + bet / 1.25 * 0.75 for bet in GRID]
    informed = [1 + bet * 0.75 for bet in (0.05, 0.1, 0.2)]
    assert evidence == pytest.approx(mixture(grid, informed))


def test_the_evidence_against_a_margin_loses_that_much_less() -> None:
    """The challenger's success costs 1 - 0.25 of at most 1 - 0.25."""
    seen = [observation(True, 1.0, 0.5)]
    (evidence,) = log_evidence_against(seen, predicted_lift=0.45, min_lift=0.25)
    informed = [1 - bet * 0.75 for bet in (0.05, 0.1, 0.2)]
    assert evidence == pytest.approx(mixture([1 - bet for bet in GRID], informed))


def test_no_informed_bet_is_smaller_than_three_points_or_larger_than_the_grid_goes() -> None:
    seen = [observation(True, 1.0, 0.5)]
    grid = [1 + bet for bet in GRID]
    (small,) = log_evidence(seen, predicted_lift=-0.2)
    assert small == pytest.approx(mixture(grid, [1.03, 1.03, 1.03]))
    (large,) = log_evidence(seen, predicted_lift=1.0)
    assert large == pytest.approx(mixture(grid, [1.25, 1.5, 1.7]))


def test_informed_bets_grow_as_the_variance_turns_out_small() -> None:
    """The first gain of 0.5 makes the variance (0.25 + 5) / (1 + 5), and bets are over that."""
    seen = [observation(True, 0.75, 0.5), observation(False, 0.0, 0.25)]
    grid = [(1 + bet * 0.5) * (1 + bet / 1.5 * 0.5) for bet in GRID]
    informed = [(1 + bet * 0.5) * (1 + bet * 6 / 5.25 * 0.5) for bet in (0.1, 0.2, 0.4)]
    evidence = log_evidence(seen, predicted_lift=0.4)[-1]
    assert evidence == pytest.approx(mixture(grid, informed))


def test_evidence_against_is_evidence_with_the_sides_exchanged() -> None:
    (seen,) = duels(1, 50, champion=0.4, challenger=0.6, seed=1)
    mirrored = [o.model_copy(update={"is_challenger": not o.is_challenger}) for o in seen]
    against = log_evidence_against(seen, predicted_lift=0.1)
    assert against == pytest.approx(log_evidence(mirrored, predicted_lift=0.1))


def test_evidence_so_far_does_not_depend_on_what_comes_later() -> None:
    (seen,) = duels(1, 50, champion=0.4, challenger=0.6, seed=1)
    for evidence in (log_evidence, log_evidence_against):
        whole = evidence(seen, predicted_lift=0.1, min_lift=0.01)
        start = evidence(seen[:20], predicted_lift=0.1, min_lift=0.01)
        assert start == pytest.approx(whole[:20], abs=1e-12)


@pytest.mark.parametrize("prediction", [0.02, 0.3, 0.5, 0.98])
@pytest.mark.parametrize("is_challenger", [True, False])
def test_a_better_reward_speaks_for_the_side_that_earned_it(
    prediction: float, is_challenger: bool
) -> None:
    (seen,) = duels(1, 30, champion=0.4, challenger=0.6, seed=1)
    lasts = [observation(is_challenger, reward, prediction) for reward in np.linspace(0, 1, 5)]
    ends = [log_evidence([*seen, last], predicted_lift=0.1, min_lift=0.02)[-1] for last in lasts]
    others = [log_evidence_against([*seen, last], predicted_lift=0.1)[-1] for last in lasts]
    way = 1 if is_challenger else -1
    assert np.all(way * np.diff(ends) > 0)
    assert np.all(way * np.diff(others) < 0)


@pytest.mark.parametrize("min_lift", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_the_worst_loss_leaves_some_wealth(reward: float, min_lift: float) -> None:
    for side, evidence in ((not reward, log_evidence), (bool(reward), log_evidence_against)):
        seen = [observation(side, reward, guess) for guess in (0.0, 0.02, 0.5, 0.98, 1.0)]
        assert np.all(np.isfinite(evidence(seen, predicted_lift=1.0, min_lift=min_lift)))


# Evidence, in expectation: all sequences of coins and rewards, weighted by their chance


def of_the_past(seen: Sequence[DuelObservation]) -> float:
    """The mean so far, with one success and one failure added."""
    return (sum(o.reward for o in seen) + 1.0) / (len(seen) + 2.0)


def contrary(seen: Sequence[DuelObservation]) -> float:
    """Far off, on the side that the last rollout makes look wrong."""
    return 0.98 if seen and seen[-1].is_challenger == (seen[-1].reward < 0.5) else 0.02


def constant(prediction: float) -> Predictor:
    return lambda _: prediction


PREDICTORS = [constant(0.02), constant(0.5), constant(0.9), of_the_past, contrary]


def expected_wealth(
    evidence: Callable[..., NDArray[np.float64]],
    predict: Predictor,
    sides: Sides,
    *,
    predicted_lift: float,
    min_lift: float = 0.0,
    rollouts: int = 3,
) -> NDArray[np.float64]:
    """The mean e-value after each rollout."""
    champion, challenger = sides
    outcomes = [(False, *pair) for pair in champion.items()]
    outcomes += [(True, *pair) for pair in challenger.items()]
    expected = np.zeros(rollouts)
    for sequence in itertools.product(outcomes, repeat=rollouts):
        seen: list[DuelObservation] = []
        for side, reward, _ in sequence:
            seen.append(observation(side, reward, predict(seen)))
        chance = math.prod(0.5 * share for *_, share in sequence)
        log_wealth = evidence(seen, predicted_lift=predicted_lift, min_lift=min_lift)
        expected += chance * np.exp(log_wealth)
    return expected


def coin(chance: float) -> dict[float, float]:
    return {1.0: chance, 0.0: 1.0 - chance}


@pytest.mark.parametrize("predict", PREDICTORS)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("predicted_lift", [-0.5, 0.1, 0.9])
def test_under_equality_the_expected_evidence_never_grows(
    predict: Predictor, rate: float, predicted_lift: float
) -> None:
    """A martingale keeps its mean at 1, whatever was predicted."""
    sides = (coin(rate), coin(rate))
    for evidence in (log_evidence, log_evidence_against):
        wealth = expected_wealth(evidence, predict, sides, predicted_lift=predicted_lift)
        assert wealth == pytest.approx(np.ones(3))


@pytest.mark.parametrize("predict", PREDICTORS)
@pytest.mark.parametrize(
    ("champion", "challenger"), [(0.5, 0.3), (0.05, 0.0), (1.0, 0.9), (1.0, 0.0)]
)
def test_against_a_worse_challenger_the_expected_evidence_falls(
    predict: Predictor, champion: float, challenger: float
) -> None:
    sides = (coin(champion), coin(challenger))
    wealth = expected_wealth(log_evidence, predict, sides, predicted_lift=0.2)
    assert np.all(np.diff(wealth, prepend=1.0) < 0)


@pytest.mark.parametrize("predict", PREDICTORS)
@pytest.mark.parametrize(("champion", "challenger"), [(0.3, 0.5), (0.0, 0.05), (0.9, 1.0)])
def test_for_a_better_challenger_the_expected_evidence_against_falls(
    predict: Predictor, champion: float, challenger: float
) -> None:
    sides = (coin(champion), coin(challenger))
    wealth = expected_wealth(log_evidence_against, predict, sides, predicted_lift=0.2)
    assert np.all(np.diff(wealth, prepend=1.0) < 0)


@pytest.mark.parametrize("predict", PREDICTORS)
@pytest.mark.parametrize("champion", [0.0, 0.4, 0.85])
def test_a_lift_of_just_the_margin_is_no_evidence_either_way(
    predict: Predictor, champion: float
) -> None:
    sides = (coin(champion), coin(champion + 0.15))
    for evidence in (log_evidence, log_evidence_against):
        wealth = expected_wealth(evidence, predict, sides, predicted_lift=0.3, min_lift=0.15)
        assert wealth == pytest.approx(np.ones(3))


@pytest.mark.parametrize("predict", PREDICTORS)
def test_graded_rewards_of_equal_mean_are_no_evidence_either_way(predict: Predictor) -> None:
    sides = ({0.5: 1.0}, {0.0: 0.4, 0.75: 0.4, 1.0: 0.2})
    for evidence in (log_evidence, log_evidence_against):
        wealth = expected_wealth(evidence, predict, sides, predicted_lift=0.3)
        assert wealth == pytest.approx(np.ones(3))


# Evidence, by simulation


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_looking_after_every_reward_promotes_an_equal_challenger_rarely(rate: float) -> None:
    played = duels(250, 300, champion=rate, challenger=rate, seed=2)
    assert share_won(played, predicted_lift=0.2) <= 0.05
    assert share_proven(played, log_evidence_against, predicted_lift=0.2) <= 0.05


def test_a_lift_of_40_points_is_proven_within_100_rewards() -> None:
    played = duels(200, 100, champion=0.25, challenger=0.65, seed=3)
    assert share_won(played, predicted_lift=0.3) >= 0.9


def test_a_lift_of_12_points_needs_hundreds() -> None:
    played = duels(100, 600, champion=0.5, challenger=0.62, seed=4)
    assert 0.5 <= share_won(played, predicted_lift=0.1) <= 0.95


def test_a_small_lift_is_proven_sooner_where_rewards_vary_little() -> None:
    """Seven points from 0.90 to 0.97 in 500 rewards, from 0.47 to 0.54 hardly ever."""
    certain = duels(100, 500, champion=0.90, challenger=0.97, seed=5)
    varied = duels(100, 500, champion=0.47, challenger=0.54, seed=5)
    assert share_won(certain, predicted_lift=0.07) >= 0.7
    assert share_won(varied, predicted_lift=0.07) <= 0.4


def test_a_deficit_is_proven_like_a_lift() -> None:
    played = duels(200, 300, champion=0.6, challenger=0.4, seed=6)
    assert share_proven(played, log_evidence_against, predicted_lift=0.1) >= 0.5
    assert share_won(played, predicted_lift=0.1) == 0.0


def test_predictions_by_example_prove_more() -> None:
    """Easy and hard examples by turns; who knows which is which needs fewer rewards."""
    rng = np.random.default_rng(7)
    sides = rng.random((100, 400)) < 0.5
    easy = np.tile([True, False], 200)
    chances = np.where(easy, 0.8, 0.1) + 0.1 * sides
    rewards = (rng.random(sides.shape) < chances).astype(float)
    blind = [observations(*pair) for pair in zip(sides, rewards, strict=True)]
    knowing = [
        [observation(*row) for row in zip(side, reward, np.where(easy, 0.85, 0.15), strict=True)]
        for side, reward in zip(sides, rewards, strict=True)
    ]
    assert share_won(knowing, predicted_lift=0.1) > share_won(blind, predicted_lift=0.1) + 0.25


def test_failures_reported_late_mislead_the_order_of_arrival_but_not_that_of_the_pins() -> None:
    """Equal sides; the challenger's failures take 200 rollouts to report. One look at each."""
    rng = np.random.default_rng(8)
    sides = rng.random((100, 300)) < 0.5
    rewards = (rng.random(sides.shape) < 0.5).astype(float)
    late = sides & (rewards == 0.0)
    arrivals = np.arange(300) + np.where(late, 200, 0)
    by_arrival, by_pin = [], []
    for side, reward, arrival in zip(sides, rewards, arrivals, strict=True):
        seen = [observation(*pair, 0.5) for pair in zip(side, reward, strict=True)]
        by_arrival.append([seen[k] for k in np.argsort(arrival, kind="stable")])
        settled = np.maximum.accumulate(arrival) < 300
        by_pin.append([o for o, in_time in zip(seen, settled, strict=True) if in_time])
    assert share_won(by_arrival, predicted_lift=0.2) > 0.9
    assert share_won(by_pin, predicted_lift=0.2) <= 0.05


# What to tell the user


def test_the_detectable_lift_shrinks_with_the_root_of_the_rewards_and_with_their_spread() -> None:
    lift = detectable_lift(400, alpha=0.05, sd=0.5)
    assert lift == pytest.approx(detectable_lift(100, alpha=0.05, sd=0.5) / 2)
    assert lift == pytest.approx(2 * detectable_lift(400, alpha=0.05, sd=0.25))
    assert lift < detectable_lift(400, alpha=0.01, sd=0.5)


@pytest.mark.parametrize("rewards", [0, 1])
def test_the_detectable_lift_is_at_most_all(rewards: int) -> None:
    assert detectable_lift(rewards, alpha=0.05, sd=0.5) == 1.0


@pytest.mark.parametrize(
    ("rewards", "middle", "alpha"), [(300, 0.5, 0.05), (300, 0.5, 0.01), (600, 0.85, 0.05)]
)
def test_about_half_of_the_duels_prove_the_detectable_lift(
    rewards: int, middle: float, alpha: float
) -> None:
    lift = detectable_lift(rewards, alpha=alpha, sd=math.sqrt(middle * (1 - middle)))
    played = duels(150, rewards, champion=middle - lift / 2, challenger=middle + lift / 2, seed=9)
    assert 0.38 < share_won(played, predicted_lift=lift, alpha=alpha) < 0.62
