"""A challenger is promoted on proof, rarely falsely, and soon when it is much better."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from prefect_mipro.config import PromotionSettings
from prefect_mipro.models.candidates import Arm, Duel, DuelObservation, DuelState
from prefect_mipro.optimizer.posterior import posterior
from prefect_mipro.optimizer.promotion import challenger, detectable_lift, log_evidence, verdict
from tests.optimizer.arms import arm, duel, grid, observations

SETTINGS = PromotionSettings()
LOG_20 = math.log(20)


def duels(
    count: int, rollouts: int, *, champion: float, challenger: float, seed: int
) -> list[list[DuelObservation]]:
    """Duels of 0/1 rewards with these chances of success."""
    rng = np.random.default_rng(seed)
    sides = rng.random((count, rollouts)) < 0.5
    rewards = rng.random((count, rollouts)) < np.where(sides, challenger, champion)
    return [observations(*pair) for pair in zip(sides, rewards.astype(float), strict=True)]


def share_won(played: list[list[DuelObservation]], *, predicted_lift: float) -> float:
    peaks = [log_evidence(o, predicted_lift=predicted_lift).max() for o in played]
    return float(np.mean(np.array(peaks) >= LOG_20))


# Evidence


def test_evidence_of_nothing_is_empty() -> None:
    assert log_evidence([], predicted_lift=0.1).shape == (0,)


def test_evidence_is_the_mean_wealth_of_the_bets() -> None:
    seen = observations([True, False, True], [1.0, 0.0, 0.25])
    wealth = []
    for bet in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7):
        wealth.append(1.0)
        for o in seen:
            z = (2 if o.is_challenger else -2) * (o.reward - o.predicted_reward)
            wealth[-1] *= 1 + bet * z / (2 * max(o.predicted_reward, 1 - o.predicted_reward))
    informed = math.prod(
        1 + 0.3 * (2 if o.is_challenger else -2) * (o.reward - o.predicted_reward) for o in seen
    )
    expected = 0.5 * np.mean(wealth) + 0.5 * informed
    assert log_evidence(seen, predicted_lift=0.3)[-1] == pytest.approx(math.log(expected))


def test_evidence_so_far_does_not_depend_on_what_comes_later() -> None:
    (seen,) = duels(1, 50, champion=0.4, challenger=0.6, seed=1)
    whole = log_evidence(seen, predicted_lift=0.1)
    assert log_evidence(seen[:20], predicted_lift=0.1) == pytest.approx(whole[:20])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("lift", [-0.5, 0.1, 0.9])
def test_under_equality_the_expected_evidence_never_grows(rate: float, lift: float) -> None:
    """All sequences of four rewards, weighted by their chance: a martingale keeps its mean at 1."""
    expected = np.zeros(4)
    for sides in itertools.product([False, True], repeat=4):
        for rewards in itertools.product([0.0, 1.0], repeat=4):
            chance = 0.5**4 * math.prod(rate if reward else 1 - rate for reward in rewards)
            evidence = log_evidence(observations(sides, rewards), predicted_lift=lift)
            expected += chance * np.exp(evidence)
    assert expected == pytest.approx(np.ones(4))


def test_against_a_worse_challenger_the_expected_evidence_falls() -> None:
    expected = np.zeros(3)
    for sides in itertools.product([False, True], repeat=3):
        for rewards in itertools.product([0.0, 1.0], repeat=3):
            chances = [0.3 if side else 0.5 for side in sides]
            chance = 0.5**3 * math.prod(
                p if reward else 1 - p for p, reward in zip(chances, rewards, strict=True)
            )
            evidence = log_evidence(observations(sides, rewards), predicted_lift=0.2)
            expected += chance * np.exp(evidence)
    assert np.all(np.diff(expected, prepend=1.0) < 0)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_the_worst_loss_leaves_some_wealth(reward: float) -> None:
    seen = [
        DuelObservation(is_challenger=not reward, reward=reward, predicted_reward=guess)
        for guess in (0.0, 0.5, 1.0)
    ]
    assert np.all(np.isfinite(log_evidence(seen, predicted_lift=1.0)))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_looking_after_every_reward_promotes_an_equal_challenger_rarely(rate: float) -> None:
    played = duels(300, 400, champion=rate, challenger=rate, seed=2)
    assert share_won(played, predicted_lift=0.2) <= 0.05


def test_a_lift_of_40_points_is_proven_within_100_rewards() -> None:
    played = duels(200, 100, champion=0.25, challenger=0.65, seed=3)
    assert share_won(played, predicted_lift=0.3) >= 0.9


def test_a_lift_of_12_points_needs_hundreds() -> None:
    played = duels(100, 600, champion=0.5, challenger=0.62, seed=4)
    assert 0.5 <= share_won(played, predicted_lift=0.1) <= 0.95


# The challenger


def nominate(
    arms: list[Arm],
    *,
    champion_id: str = "1.1",
    newest: Duel | None = None,
    rollouts_now: int = 1_000,
    settings: PromotionSettings = SETTINGS,
) -> str | None:
    found = challenger(
        posterior(arms),
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
    belief = posterior(CLEAR)
    found = challenger(belief, champion_id="1.1", duel=None, rollouts_now=60, settings=SETTINGS)
    assert found is not None
    assert found[1] == pytest.approx(belief.mean[1] - belief.mean[0])
    assert 0.1 < found[1] < 0.5


def test_among_the_better_ones_the_best_challenges() -> None:
    assert nominate([*CLEAR, arm(2, 3, rewards=30, mean=0.9)]) == "2.3"


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


@pytest.mark.parametrize("state", [DuelState.ABANDONED, DuelState.EXPIRED])
def test_a_challenger_that_did_not_win_rests(state: DuelState) -> None:
    lost = duel("1.1", "1.2", state=state, rollouts_before=100, rollouts=100)
    ended = 100 + 100 / SETTINGS.traffic_share
    assert nominate(CLEAR, newest=lost, rollouts_now=int(ended) + 59) is None
    assert nominate(CLEAR, newest=lost, rollouts_now=int(ended) + 60) == "1.2"


def test_a_better_one_need_not_wait_for_the_rest_of_another() -> None:
    lost = duel("1.1", "2.2", state=DuelState.ABANDONED, rollouts_before=100, rollouts=100)
    assert nominate(CLEAR, newest=lost, rollouts_now=300) == "1.2"


# The verdict


def judge(seen: list[DuelObservation], arms: list[Arm], **fields: object) -> DuelState:
    contest = duel("1.1", "1.2", **fields)
    return verdict(contest, seen, posterior(arms), settings=SETTINGS)


def outcome(*, champion: float, challenger: float, rewards: int = 100) -> list[DuelObservation]:
    """Alternating sides, each with its share of successes spread evenly."""
    sides = [number % 2 == 1 for number in range(rewards)]
    scores = [challenger if side else champion for side in sides]
    return observations(sides, scores)


def test_a_duel_goes_on_while_nothing_is_proven() -> None:
    assert judge(outcome(champion=0.5, challenger=0.5), CLEAR) is DuelState.RUNNING
    assert judge([], CLEAR) is DuelState.RUNNING


def test_enough_evidence_wins() -> None:
    assert judge(outcome(champion=0.1, challenger=0.9), CLEAR) is DuelState.WON


def test_evidence_that_sufficed_once_is_not_lost_again() -> None:
    good = outcome(champion=0.1, challenger=0.9)
    bad = outcome(champion=0.9, challenger=0.1, rewards=200)
    assert log_evidence([*good, *bad], predicted_lift=0.1)[-1] < LOG_20
    assert judge([*good, *bad], CLEAR) is DuelState.WON


def test_a_duel_expires_at_its_longest() -> None:
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen, CLEAR, rollouts=SETTINGS.max_rollouts) is DuelState.EXPIRED


def test_a_challenger_that_turns_out_worse_is_given_up_after_60_rewards() -> None:
    worse = [arm(1, 1, rewards=100, mean=0.5), arm(1, 2, rewards=100, mean=0.3)]
    seen = outcome(champion=0.5, challenger=0.3)
    assert judge(seen[:59], worse) is DuelState.RUNNING
    assert judge(seen[:60], worse) is DuelState.ABANDONED


def test_a_challenger_gives_way_to_a_clearly_better_one_after_30_rewards() -> None:
    field = [*CLEAR, arm(2, 3, rewards=60, mean=0.95)]
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen[:29], field) is DuelState.RUNNING
    assert judge(seen[:30], field) is DuelState.ABANDONED


def test_a_challenger_does_not_give_way_to_one_that_is_hardly_better() -> None:
    field = [*CLEAR, arm(1, 3, rewards=30, mean=0.71)]
    assert judge(outcome(champion=0.5, challenger=0.5), field) is DuelState.RUNNING


def test_a_duel_with_a_retired_side_is_given_up() -> None:
    assert judge([], CLEAR[:1]) is DuelState.ABANDONED


def test_a_duel_that_ended_stays_ended() -> None:
    seen = outcome(champion=0.1, challenger=0.9)
    assert judge(seen, CLEAR, state=DuelState.EXPIRED) is DuelState.EXPIRED


# What to tell the user


def test_the_detectable_lift_shrinks_with_the_root_of_the_rollouts() -> None:
    assert detectable_lift(400) == pytest.approx(detectable_lift(100) / 2)
    assert detectable_lift(0) == 1.0
    assert detectable_lift(1) == 1.0


def test_about_half_of_the_duels_prove_the_detectable_lift() -> None:
    lift = detectable_lift(300)
    played = duels(200, 300, champion=0.5 - lift / 2, challenger=0.5 + lift / 2, seed=5)
    assert 0.4 < share_won(played, predicted_lift=lift) < 0.8


def test_many_arms_do_not_change_who_is_judged() -> None:
    crowd = [*CLEAR, *grid(3, 3, rewards=5, mean=0.4)[3:]]
    assert judge(outcome(champion=0.1, challenger=0.9), crowd) is DuelState.WON
