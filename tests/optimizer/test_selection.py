"""Every choice is drawn from the propensities it reports, and exploring stays within its limits."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_mipro.config import PromotionSettings, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Arm, Duel, DuelState
from prefect_mipro.optimizer.posterior import posterior
from prefect_mipro.optimizer.selection import (
    Choice,
    choose,
    predicted_reward,
    propensities,
)
from tests.optimizer.arms import arm, duel, grid

STRATEGIES = list(Strategy)


def chosen(
    arms: list[Arm],
    *,
    champion_id: str = "1.1",
    running: Duel | None = None,
    seed: int = 0,
    traffic_share: float = 0.5,
    **fields: Any,
) -> Choice:
    return choose(
        arms,
        champion_id=champion_id,
        duel=running,
        settings=SelectionSettings(**fields),
        promotion=PromotionSettings(traffic_share=traffic_share),
        rng=np.random.default_rng(seed),
    )


def shares(
    arms: list[Arm], *, champion_id: str = "1.1", seed: int = 0, **fields: Any
) -> dict[str, float]:
    vector = propensities(
        arms,
        champion_id=champion_id,
        settings=SelectionSettings(**fields),
        rng=np.random.default_rng(seed),
    )
    return dict(zip((a.candidate_id for a in arms), vector.tolist(), strict=True))


def tried(instructions: int = 3, demonstrations: int = 3, *, rewards: int = 12) -> list[Arm]:
    """A grid in which later versions are better."""
    return [
        arm(i, d, rewards=rewards, mean=0.3 + 0.05 * i + 0.05 * d)
        for i in range(1, instructions + 1)
        for d in range(1, demonstrations + 1)
    ]


# The vector and the draw


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_propensities_are_a_distribution_over_all_arms(strategy: Strategy) -> None:
    choice = chosen(tried(), strategy=strategy)
    assert set(choice.propensities) == {a.candidate_id for a in tried()}
    assert sum(choice.propensities.values()) == pytest.approx(1.0)
    assert choice.propensity == choice.propensities[choice.candidate_id] > 0


@pytest.mark.parametrize("running", [None, duel()])
@pytest.mark.parametrize("strategy", [Strategy.MIPRO, Strategy.THOMPSON, Strategy.UNIFORM])
def test_candidates_come_as_often_as_their_propensities_say(
    strategy: Strategy, running: Duel | None
) -> None:
    arms = tried(2, 2)
    choices = [chosen(arms, running=running, strategy=strategy, seed=s) for s in range(1_000)]
    counts = Counter(choice.candidate_id for choice in choices)
    for a in arms:
        expected = np.mean([choice.propensities[a.candidate_id] for choice in choices])
        assert counts[a.candidate_id] / 1_000 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_chooses_the_same(strategy: Strategy) -> None:
    assert chosen(tried(), strategy=strategy, seed=5) == chosen(tried(), strategy=strategy, seed=5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_champion_alone_is_always_chosen(strategy: Strategy) -> None:
    for rewards in (0, 50):
        choice = chosen([arm(1, 1, rewards=rewards, mean=0.5)], strategy=strategy)
        assert choice.candidate_id == "1.1"
        assert choice.propensity == pytest.approx(1.0)


CASE = st.tuples(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 60), st.floats(0, 1), st.integers(0, 20)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(CASE, min_size=1, max_size=12, unique_by=lambda case: case[:2]),
    st.sampled_from(STRATEGIES),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_any_statistics_give_a_distribution(
    cases: list[tuple[int, int, int, float, int]],
    strategy: Strategy,
    explore_share: float,
    uniform_share: float,
) -> None:
    arms = [arm(i, d, rewards=n, mean=mean, in_flight=k) for i, d, n, mean, k in cases]
    vector = propensities(
        arms,
        champion_id=arms[0].candidate_id,
        settings=SelectionSettings(
            strategy=strategy, explore_share=explore_share, uniform_share=uniform_share
        ),
        rng=np.random.default_rng(0),
    )
    assert vector.sum() == pytest.approx(1.0)
    assert vector.min() >= 0


# Simple strategies


def test_uniform_gives_every_arm_the_same() -> None:
    assert set(shares(tried(), strategy="uniform").values()) == {1 / 9}


def test_fixed_serves_the_named_candidate() -> None:
    assert shares(tried(), strategy="fixed", candidate_id="2.3")["2.3"] == 1.0


@pytest.mark.parametrize("candidate_id", [None, "retired"])
def test_fixed_serves_the_champion_where_none_is_named_or_it_is_gone(
    candidate_id: str | None,
) -> None:
    found = shares(tried(), champion_id="3.1", strategy="fixed", candidate_id=candidate_id)
    assert found["3.1"] == 1.0


def test_fixed_ignores_a_duel() -> None:
    for seed in range(20):
        assert chosen(tried(), running=duel(), strategy="fixed", seed=seed).candidate_id == "1.1"


def test_thompson_prefers_what_was_rewarded_but_not_only_that() -> None:
    arms = [arm(1, 1, rewards=20, mean=0.2), arm(1, 2, rewards=20, mean=0.7), arm(1, 3)]
    found = shares(arms, strategy="thompson")
    assert found["1.2"] > found["1.3"] > found["1.1"] > 0


# The default strategy


def test_cold_top_two_shares_follow_the_chance_to_be_best() -> None:
    """The leader with probability beta, else another leader is drawn until it differs."""
    arms = tried(2, 2, rewards=40)
    belief = posterior(arms)
    drawn = belief.draws(np.random.default_rng(1), 100_000, temperature=0.5).argmax(axis=0)
    best = np.bincount(drawn, minlength=4) / len(drawn)
    expected = 0.8 * best
    for leader, other in permutations(range(4), 2):
        expected[other] += 0.2 * best[leader] * best[other] / (1 - best[leader])
    many = [list(shares(arms, seed=seed, uniform_share=0.0).values()) for seed in range(300)]
    assert np.mean(many, axis=0) == pytest.approx(expected, abs=0.02)


def test_most_of_the_traffic_goes_to_what_is_clearly_best() -> None:
    arms = [*grid(2, 2, rewards=100, mean=0.3), arm(3, 3, rewards=100, mean=0.8)]
    assert shares(arms)["3.3"] > 0.75


def test_every_arm_keeps_a_share() -> None:
    arms = [*grid(2, 2, rewards=100, mean=0.1), arm(3, 3, rewards=1_000, mean=0.9)]
    assert min(shares(arms).values()) >= 0.02 / 5 * 0.99


def test_constant_rewards_keep_all_arms_in_play() -> None:
    assert min(shares(grid(3, 3, rewards=10, mean=0.0)).values()) > 0.02


# Before anything is known


def test_at_first_half_the_traffic_is_the_champions_and_half_that_of_four_others() -> None:
    found = shares(grid(3, 3))
    assert found["1.1"] == 0.5
    assert sorted(found.values()) == [0.0] * 4 + [0.125] * 4 + [0.5]


def test_at_first_those_go_first_that_ran_least() -> None:
    served = [arm(1, 1), *(arm(1, d, in_flight=2) for d in range(2, 6)), arm(2, 1), arm(2, 2)]
    found = shares(served)
    assert found["2.1"] == found["2.2"] == 0.125
    assert sum(share > 0 for share in found.values()) == 5


def test_from_the_20th_reward_on_the_model_decides() -> None:
    assert shares([arm(1, 1, rewards=19, mean=0.5), arm(1, 2)])["1.1"] == 0.5
    assert shares([arm(1, 1, rewards=20, mean=0.5), arm(1, 2)])["1.1"] != 0.5


# Limits


def test_at_most_the_explore_share_leaves_the_champion_while_nothing_looks_better() -> None:
    found = shares(grid(3, 3, rewards=10, mean=0.5), explore_share=0.3)
    assert found["1.1"] == pytest.approx(0.7)
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_candidate_that_hardly_anyone_has_judged_gets_a_quarter_at_most() -> None:
    levers_are_best = [
        arm(1, 1, rewards=200, mean=0.2),
        arm(1, 2, rewards=100, mean=0.7),
        arm(2, 1, rewards=100, mean=0.7),
    ]
    for rewards, in_flight in ((0, 0), (4, 0), (4, 500)):
        fresh = arm(2, 2, rewards=rewards, mean=1.0, in_flight=in_flight)
        assert shares([*levers_are_best, fresh])["2.2"] == pytest.approx(0.25)
    assert shares([*levers_are_best, arm(2, 2, rewards=5, mean=1.0)])["2.2"] > 0.5


def test_the_champion_is_never_held_back_as_fresh() -> None:
    arms = [arm(1, 1, rewards=30, mean=0.1), arm(2, 2, rewards=2, mean=1.0)]
    assert shares(arms, champion_id="2.2")["2.2"] > 0.5


def test_the_limit_ends_when_a_candidate_looks_better_on_rewards_of_its_own() -> None:
    arms = [arm(1, 1, rewards=60, mean=0.2), arm(1, 2, rewards=30, mean=0.8)]
    assert shares(arms, explore_share=0.1)["1.2"] > 0.5
    few = [arm(1, 1, rewards=60, mean=0.2), arm(1, 2, rewards=29, mean=0.8)]
    assert shares(few, explore_share=0.1)["1.2"] == pytest.approx(0.1)


# Duels


def test_half_of_the_rollouts_are_the_duels_and_a_fair_coin_decides() -> None:
    arms = tried(2, 2)
    choices = [chosen(arms, running=duel("1.1", "2.2"), seed=seed) for seed in range(1_000)]
    fought = [choice for choice in choices if choice.duel_number]
    assert len(fought) / 1_000 == pytest.approx(0.5, abs=0.05)
    sides = Counter(choice.candidate_id for choice in fought)
    assert set(sides) == {"1.1", "2.2"}
    assert sides["1.1"] / len(fought) == pytest.approx(0.5, abs=0.07)


def test_a_duel_rollout_carries_the_number_and_the_prediction_made_before_it() -> None:
    running = duel(number=3, rewards=8, reward_sum=6.5)
    choice = chosen(tried(), running=running, traffic_share=1.0)
    assert (choice.duel_number, choice.predicted_reward) == (3, 0.75)
    assert predicted_reward(duel()) == 0.5


def test_other_rollouts_carry_neither() -> None:
    for choice in (chosen(tried()), chosen(tried(), running=duel(), traffic_share=1e-9)):
        assert (choice.duel_number, choice.predicted_reward) == (None, None)


def test_the_propensity_counts_both_ways_to_a_candidate() -> None:
    arms = tried(2, 2)
    usual = shares(arms, strategy="uniform")
    found = chosen(arms, running=duel("1.1", "2.2"), strategy="uniform").propensities
    assert found["1.1"] == found["2.2"] == pytest.approx(0.25 + 0.5 * usual["1.1"])
    assert found["1.2"] == pytest.approx(0.5 * usual["1.2"])


@pytest.mark.parametrize(
    "over",
    [duel(state=DuelState.WON), duel("1.1", "retired"), duel("retired", "2.2")],
    ids=["ended", "challenger retired", "champion retired"],
)
def test_a_duel_that_is_over_or_lacks_a_side_gets_no_traffic(over: Duel) -> None:
    assert all(chosen(tried(), running=over, seed=seed).duel_number is None for seed in range(20))
