"""Each strategy shares the traffic out as it says, and exploring stays within its limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_mipro.config import Exploration, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Arm
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import posterior
from prefect_mipro.optimizer.strategies import BOLDNESS, STRATEGIES, Boldness, Situation
from tests.optimizer.arms import arm, believed, grid

CONSTANTS = {field.name for field in dataclasses.fields(Boldness)}


def situation(arms: Sequence[Arm], *, champion_id: str = "1.1", **fields: Any) -> Situation:
    evidence = Evidence.of(arms)
    return Situation(
        belief=posterior(evidence),
        total_rewards=evidence.rewards,
        lever_rewards=evidence.lever_rewards(),
        rewards=evidence.counts[:, 0],
        reward_sums=evidence.sums[:, 0],
        pending=evidence.pending,
        champion=[a.candidate_id for a in arms].index(champion_id),
        settings=SelectionSettings(**{k: v for k, v in fields.items() if k not in CONSTANTS}),
        boldness=Boldness(**{k: v for k, v in fields.items() if k in CONSTANTS}),
    )


def shares(
    arms: Sequence[Arm], strategy: Strategy = Strategy.MIPRO, *, seed: int = 0, **fields: Any
) -> dict[str, float]:
    vector = STRATEGIES[strategy](situation(arms, **fields), np.random.default_rng(seed))
    return dict(zip((a.candidate_id for a in arms), vector.tolist(), strict=True))


def tried(instructions: int = 3, demonstrations: int = 3, *, rewards: int = 12) -> list[Arm]:
    """A grid in which later versions are better."""
    return [
        arm(i, d, rewards=rewards, mean=0.3 + 0.05 * i + 0.05 * d)
        for i in range(1, instructions + 1)
        for d in range(1, demonstrations + 1)
    ]


def test_every_strategy_of_the_config_is_there() -> None:
    assert set(STRATEGIES) == set(Strategy)


CASE = st.tuples(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 60), st.floats(0, 1), st.integers(0, 20)
)


@settings(max_examples=100)
@given(
    st.lists(CASE, min_size=1, max_size=12, unique_by=lambda case: case[:2]),
    st.sampled_from(Strategy),
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
    found = shares(
        arms,
        strategy,
        champion_id=arms[0].candidate_id,
        explore_share=explore_share,
        uniform_share=uniform_share,
    )
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found.values()) >= 0


# Simple strategies


def test_uniform_gives_every_candidate_the_same() -> None:
    assert set(shares(tried(), Strategy.UNIFORM).values()) == {1 / 9}


def test_fixed_serves_the_named_candidate() -> None:
    assert shares(tried(), Strategy.FIXED, candidate_id="2.3")["2.3"] == 1.0


@pytest.mark.parametrize("candidate_id", [None, "retired"])
def test_fixed_serves_the_champion_where_none_is_named_or_it_is_gone(
    candidate_id: str | None,
) -> None:
    found = shares(tried(), Strategy.FIXED, champion_id="3.1", candidate_id=candidate_id)
    assert found["3.1"] == 1.0


# The default strategy


def test_cold_top_two_shares_follow_the_chance_to_be_best() -> None:
    """The leader with probability beta, else another leader is drawn until it differs."""
    arms = tried(2, 2, rewards=40)
    drawn = believed(arms).draws(np.random.default_rng(1), 100_000, temperature=0.5)
    best = np.bincount(drawn.argmax(axis=0), minlength=4) / 100_000
    expected = 0.8 * best
    for leader, other in permutations(range(4), 2):
        expected[other] += 0.2 * best[leader] * best[other] / (1 - best[leader])
    many = [
        list(shares(arms, seed=seed, leader_share=0.8, uniform_share=0.0).values())
        for seed in range(300)
    ]
    assert np.mean(many, axis=0) == pytest.approx(expected, abs=0.02)


def of(exploration: Exploration) -> dict[str, Any]:
    return dataclasses.asdict(BOLDNESS[exploration])


def test_careful_sessions_give_new_prompts_less() -> None:
    arms = [arm(1, 1, rewards=60, mean=0.5), arm(2, 1, rewards=60, mean=0.52), arm(3, 1)]
    assert shares(arms, **of(Exploration.CAREFUL))["3.1"] <= 0.1 + 1e-9
    assert shares(arms, **of(Exploration.BALANCED))["3.1"] > 0.2


def test_bold_sessions_leave_the_leader_more_often() -> None:
    arms = tried(2, 2, rewards=40)
    bold, balanced = (
        shares(arms, **of(exploration)) for exploration in (Exploration.BOLD, Exploration.BALANCED)
    )
    assert bold["2.2"] < balanced["2.2"]


def test_most_of_the_traffic_goes_to_what_is_clearly_best() -> None:
    arms = [*grid(2, 2, rewards=100, mean=0.3), arm(3, 3, rewards=100, mean=0.8)]
    assert shares(arms)["3.3"] > 0.75


def test_every_candidate_keeps_a_share() -> None:
    arms = [*grid(2, 2, rewards=100, mean=0.1), arm(3, 3, rewards=1_000, mean=0.9)]
    assert min(shares(arms, uniform_share=0.02).values()) >= 0.02 / 5 * 0.99


def test_constant_rewards_keep_all_candidates_in_play() -> None:
    assert min(shares(grid(3, 3, rewards=10, mean=0.0)).values()) > 0.02


def test_rollouts_in_flight_make_the_others_more_likely() -> None:
    arms = [arm(1, d, rewards=10, mean=0.5) for d in (1, 2, 3)]
    waiting = [arm(1, 1, rewards=10, mean=0.5, in_flight=40), *arms[1:]]
    there = np.mean([shares(arms, seed=seed)["1.1"] for seed in range(100)])
    here = np.mean([shares(waiting, seed=seed)["1.1"] for seed in range(100)])
    assert here < there - 0.01


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
    few, enough = (
        [arm(1, 1, rewards=10, mean=0.1), arm(1, 2, rewards=rewards, mean=0.9)]
        for rewards in (9, 10)
    )
    assert shares(few)["1.2"] == 0.5
    assert shares(enough)["1.2"] > 0.7


# Limits


def test_at_most_the_explore_share_leaves_the_champion_while_nothing_looks_better() -> None:
    found = shares(grid(3, 3, rewards=10, mean=0.5), explore_share=0.3)
    assert found["1.1"] == pytest.approx(0.7)
    assert sum(found.values()) == pytest.approx(1.0)


def test_the_explore_share_holds_before_anything_is_known() -> None:
    found = shares(grid(3, 3), explore_share=0.1)
    assert found["1.1"] == pytest.approx(0.9)


def test_the_limit_ends_when_a_candidate_looks_better_on_rewards_of_its_own() -> None:
    arms = [arm(1, 1, rewards=60, mean=0.2), arm(1, 2, rewards=30, mean=0.8)]
    assert shares(arms, explore_share=0.1)["1.2"] > 0.5
    few = [arm(1, 1, rewards=60, mean=0.2), arm(1, 2, rewards=29, mean=0.8)]
    assert shares(few, explore_share=0.1)["1.2"] == pytest.approx(0.1)


def judged() -> list[Arm]:
    return [
        arm(1, 1, rewards=200, mean=0.2),
        arm(1, 2, rewards=100, mean=0.7),
        arm(2, 1, rewards=100, mean=0.7),
    ]


@pytest.mark.parametrize(("rewards", "in_flight"), [(0, 0), (3, 0), (3, 500)])
def test_a_new_lever_gets_its_share_at_most_in_whatever_candidates(
    rewards: int, in_flight: int
) -> None:
    new = [arm(2, d, rewards=rewards, mean=1.0, in_flight=in_flight) for d in (3, 4)]
    new += [arm(1, d, rewards=rewards, mean=1.0, in_flight=in_flight) for d in (3, 4)]
    found = shares([*judged(), *new], new_lever_share=0.1, new_lever_rewards=8)
    assert found["2.3"] + found["1.3"] <= 0.1 + 1e-9
    assert found["2.4"] + found["1.4"] <= 0.1 + 1e-9
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_lever_with_enough_rewards_is_not_held_back() -> None:
    new = arm(2, 3, rewards=8, mean=1.0)
    found = shares([*judged(), new], new_lever_share=0.1, new_lever_rewards=8)
    assert found["2.3"] > 0.3


def test_a_new_candidate_of_known_levers_is_not_held_back() -> None:
    found = shares([*judged(), arm(2, 2)], new_lever_share=0.1, new_lever_rewards=8)
    assert found["2.2"] > 0.5


def test_the_champion_is_never_held_back_as_new() -> None:
    arms = [arm(1, 1, rewards=30, mean=0.1), arm(2, 2, rewards=2, mean=1.0)]
    assert shares(arms, champion_id="2.2")["2.2"] > 0.5
