"""A challenger is promoted on proof, rarely falsely, and soon when it is much better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_mipro.config import PromotionSettings
from prefect_mipro.models.candidates import Arm, Duel, DuelObservation, DuelState
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import Posterior, posterior
from prefect_mipro.optimizer.promotion import (
    challenger,
    detectable_lift,
    log_evidence,
    log_evidence_against,
    verdict,
)
from tests.optimizer.arms import arm, duel, grid, observations

SETTINGS = PromotionSettings()
LOG_20 = math.log(20)
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


# The challenger


def believed(arms: Sequence[Arm]) -> Posterior:
    return posterior(Evidence.of(arms))


def nominate(
    arms: list[Arm],
    *,
    retired: Sequence[str] = (),
    champion_id: str = "1.1",
    newest: Duel | None = None,
    rollouts_now: int = 1_000,
    settings: PromotionSettings = SETTINGS,
) -> str | None:
    found = challenger(
        believed(arms),
        active=[a.candidate_id for a in arms if a.candidate_id not in retired],
        champion_id=champion_id,
        duel=newest,
        rollouts_now=rollouts_now,
        settings=settings,
    )
    return found[0] if found else None


CLEAR = [arm(1, 1, rewards=30, mean=0.2), arm(1, 2, rewards=30, mean=0.7)]


def test_a_clearly_better_candidate_challenges_after_60_rewards() -> None:
    assert nominate(CLEAR) == "1.2"
    assert nominate([CLEAR[0], arm(1, 2, rewards=29, mean=0.7)]) is None


def test_the_predicted_lift_is_that_of_the_posterior() -> None:
    belief = believed(CLEAR)
    found = challenger(
        belief,
        active=["1.1", "1.2"],
        champion_id="1.1",
        duel=None,
        rollouts_now=60,
        settings=SETTINGS,
    )
    assert found is not None
    assert found[1] == pytest.approx(belief.mean[1] - belief.mean[0])
    assert 0.1 < found[1] < 0.5


def test_among_the_better_ones_the_best_challenges() -> None:
    assert nominate([*CLEAR, arm(2, 3, rewards=30, mean=0.9)]) == "2.3"


def test_a_retired_candidate_does_not_challenge() -> None:
    field = [*CLEAR, arm(2, 3, rewards=30, mean=0.9)]
    assert nominate(field, retired=["2.3"]) == "1.2"
    assert nominate(field, retired=["2.3", "1.2"]) is None


def test_a_candidate_challenges_only_if_likely_better_by_more_than_the_margin() -> None:
    assert nominate(CLEAR, settings=PromotionSettings(min_lift=0.05)) == "1.2"
    assert nominate(CLEAR, settings=PromotionSettings(min_lift=0.4)) is None


def test_an_uncertain_leader_does_not_challenge() -> None:
    assert nominate([arm(1, 1, rewards=30, mean=0.5), arm(1, 2, rewards=30, mean=0.55)]) is None


def test_a_candidate_without_rewards_of_its_own_does_not_challenge() -> None:
    arms = [
        arm(1, 1, rewards=200, mean=0.1),
        arm(2, 2, rewards=200, mean=0.9),
        arm(2, 3, rewards=200, mean=0.9),
        arm(3, 2),
    ]
    assert nominate(arms[1:], champion_id="2.2") is None
    assert nominate([arms[0], arms[3]]) is None


def test_the_champion_alone_has_no_challenger() -> None:
    assert nominate([arm(1, 1, rewards=200, mean=0.1)]) is None


def test_switched_off_nobody_challenges() -> None:
    assert nominate(CLEAR, settings=PromotionSettings(enabled=False)) is None


def test_one_duel_runs_at_a_time() -> None:
    assert nominate(CLEAR, newest=duel(rollouts_before=100, rollouts=100)) is None


def test_after_a_promotion_the_next_duel_may_start_at_once() -> None:
    won = duel(state=DuelState.WON, rollouts_before=900, rollouts=50)
    assert nominate(CLEAR, newest=won) == "1.2"


def test_a_dethroned_champion_may_challenge_back_at_once() -> None:
    won = duel("1.2", "1.1", state=DuelState.WON, rollouts_before=900, rollouts=50)
    assert nominate(CLEAR, newest=won, champion_id="1.1") == "1.2"


@pytest.mark.parametrize("state", [DuelState.LOST, DuelState.ABANDONED, DuelState.EXPIRED])
def test_a_challenger_that_did_not_win_rests(state: DuelState) -> None:
    lost = duel("1.1", "1.2", state=state, rollouts_before=100, rollouts=100)
    ended = 100 + 100 / SETTINGS.traffic_share
    assert nominate(CLEAR, newest=lost, rollouts_now=int(ended) + 59) is None
    assert nominate(CLEAR, newest=lost, rollouts_now=int(ended) + 60) == "1.2"


def test_a_better_one_need_not_wait_for_the_rest_of_another() -> None:
    lost = duel("1.1", "2.2", state=DuelState.ABANDONED, rollouts_before=100, rollouts=100)
    assert nominate(CLEAR, newest=lost, rollouts_now=300) == "1.2"


# The verdict


def judge(
    seen: list[DuelObservation],
    arms: list[Arm],
    *,
    retired: Sequence[str] = (),
    settings: PromotionSettings = SETTINGS,
    **fields: object,
) -> DuelState:
    active = [a.candidate_id for a in arms if a.candidate_id not in retired]
    contest = duel("1.1", "1.2", **fields)
    return verdict(contest, seen, believed(arms), active=active, settings=settings)


def outcome(*, champion: float, challenger: float, rewards: int = 100) -> list[DuelObservation]:
    """Alternating sides, each with its share of successes spread evenly."""
    sides = [number % 2 == 1 for number in range(rewards)]
    scores = [challenger if side else champion for side in sides]
    return observations(sides, scores)


GOOD = outcome(champion=0.1, challenger=0.9)
BAD = outcome(champion=0.9, challenger=0.1)


def test_a_duel_goes_on_while_nothing_is_proven() -> None:
    assert judge(outcome(champion=0.5, challenger=0.5), CLEAR) is DuelState.RUNNING
    assert judge([], CLEAR) is DuelState.RUNNING


def test_enough_evidence_wins() -> None:
    assert judge(GOOD, CLEAR) is DuelState.WON


def test_enough_evidence_against_loses() -> None:
    assert judge(BAD, CLEAR) is DuelState.LOST


@pytest.mark.parametrize(
    ("seen", "state"),
    [([*GOOD, *BAD, *BAD], DuelState.WON), ([*BAD, *GOOD, *GOOD], DuelState.LOST)],
)
def test_what_was_proven_first_counts(seen: list[DuelObservation], state: DuelState) -> None:
    assert judge(seen, CLEAR) is state
    assert judge(seen, CLEAR, rollouts=SETTINGS.max_rollouts) is state


def test_a_smaller_alpha_asks_for_more() -> None:
    first_half = GOOD[:20]
    assert judge(first_half, CLEAR) is DuelState.WON
    strict = PromotionSettings(alpha=1e-6)
    assert judge(first_half, CLEAR, settings=strict) is DuelState.RUNNING


def test_a_lift_within_the_margin_loses() -> None:
    seen = outcome(champion=0.4, challenger=0.6, rewards=400)
    assert judge(seen, CLEAR) is DuelState.WON
    assert judge(seen, CLEAR, settings=PromotionSettings(min_lift=0.5)) is DuelState.LOST


def test_a_duel_expires_at_its_longest() -> None:
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen, CLEAR, rollouts=SETTINGS.max_rollouts) is DuelState.EXPIRED


def test_a_challenger_that_turns_out_worse_is_given_up_after_60_rewards() -> None:
    worse = [arm(1, 1, rewards=100, mean=0.5), arm(1, 2, rewards=100, mean=0.3)]
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen[:59], worse) is DuelState.RUNNING
    assert judge(seen[:60], worse) is DuelState.ABANDONED


BETTER_RIVAL = [*CLEAR, arm(2, 3, rewards=60, mean=0.95)]


def test_a_challenger_gives_way_to_a_clearly_better_one_after_30_rewards() -> None:
    seen = outcome(champion=0.5, challenger=0.45)
    assert judge(seen[:29], BETTER_RIVAL) is DuelState.RUNNING
    assert judge(seen[:30], BETTER_RIVAL) is DuelState.ABANDONED


def test_a_challenger_that_the_evidence_is_for_stays() -> None:
    seen = outcome(champion=0.5, challenger=0.55)
    assert judge(seen[:40], BETTER_RIVAL) is DuelState.RUNNING


def test_a_challenger_does_not_give_way_to_one_that_is_hardly_better() -> None:
    field = [*CLEAR, arm(1, 3, rewards=30, mean=0.71)]
    assert judge(outcome(champion=0.5, challenger=0.5), field) is DuelState.RUNNING


def test_a_challenger_does_not_give_way_to_a_retired_one() -> None:
    seen = outcome(champion=0.5, challenger=0.45, rewards=30)
    assert judge(seen, BETTER_RIVAL, retired=["2.3"]) is DuelState.RUNNING


@pytest.mark.parametrize("side", ["1.1", "1.2"])
def test_a_duel_with_a_retired_side_is_given_up(side: str) -> None:
    assert judge([], CLEAR, retired=[side]) is DuelState.ABANDONED


def test_a_duel_that_ended_stays_ended() -> None:
    seen = outcome(champion=0.1, challenger=0.9)
    assert judge(seen, CLEAR, state=DuelState.EXPIRED) is DuelState.EXPIRED


def test_many_arms_do_not_change_who_is_judged() -> None:
    crowd = [*CLEAR, *grid(3, 3, rewards=5, mean=0.4)[3:]]
    assert judge(outcome(champion=0.1, challenger=0.9), crowd) is DuelState.WON


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
