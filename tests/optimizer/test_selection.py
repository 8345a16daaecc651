"""Every choice is drawn from the propensities it reports, in a duel and out of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from prefect_mipro.config import PromotionSettings, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Arm, Duel, DuelState
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import DEFAULT_SCALES, Scales, posterior
from prefect_mipro.optimizer.selection import Choice, Plan, choose, plan, predicted_reward
from tests.optimizer.arms import arm, duel, grid


def planned(
    arms: list[Arm],
    *,
    active: list[str] | None = None,
    champion_id: str = "1.1",
    seed: int = 0,
    scales: Scales = DEFAULT_SCALES,
    **fields: Any,
) -> Plan:
    evidence = Evidence.of(arms)
    return plan(
        evidence,
        belief=posterior(evidence, scales=scales),
        active=active or [a.candidate_id for a in arms],
        champion_id=champion_id,
        settings=SelectionSettings(**fields),
        rng=np.random.default_rng(seed),
    )


def shares(plan: Plan) -> dict[str, float]:
    return dict(zip(plan.ids, plan.propensities.tolist(), strict=True))


def chosen(
    plan: Plan,
    *,
    running: Duel | None = None,
    seed: int = 0,
    traffic_share: float = 0.5,
    expected_deviation: float = 0.0,
    **fields: Any,
) -> Choice:
    return choose(
        plan,
        duel=running,
        expected_deviation=expected_deviation,
        settings=SelectionSettings(**fields),
        promotion=PromotionSettings(traffic_share=traffic_share),
        rng=np.random.default_rng(seed),
    )


def tried(instructions: int = 3, demonstrations: int = 3, *, rewards: int = 12) -> list[Arm]:
    """A grid in which later versions are better."""
    return [
        arm(i, d, rewards=rewards, mean=0.3 + 0.05 * i + 0.05 * d)
        for i in range(1, instructions + 1)
        for d in range(1, demonstrations + 1)
    ]


EVEN = Plan(("1.1", "1.2", "2.1", "2.2"), np.full(4, 0.25))
SKEWED = Plan(("1.1", "1.2", "2.1", "2.2"), np.array([0.1, 0.2, 0.3, 0.4]))


# Plans


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_plan_shares_all_of_the_traffic_out_among_the_active_candidates(
    strategy: Strategy,
) -> None:
    found = planned(tried(), active=["1.1", "3.3", "2.1"], strategy=strategy)
    assert found.ids == ("1.1", "3.3", "2.1")
    assert found.propensities.shape == (3,)
    assert found.propensities.sum() == pytest.approx(1.0)
    assert found.propensities.min() >= 0


@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_same_seed_plans_the_same(strategy: Strategy) -> None:
    there, back = (planned(tried(), strategy=strategy, seed=5) for _ in range(2))
    assert shares(there) == shares(back)


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("rewards", [0, 50])
def test_a_champion_alone_gets_everything(strategy: Strategy, rewards: int) -> None:
    found = planned([arm(1, 1, rewards=rewards, mean=0.5)], strategy=strategy)
    assert shares(found) == pytest.approx({"1.1": 1.0})


def test_retired_candidates_teach_about_the_levers_they_shared() -> None:
    active = [arm(1, 1, rewards=40, mean=0.5), arm(2, 2, rewards=5, mean=0.6), arm(3, 3)]
    good = arm(2, 3, rewards=60, mean=0.9)
    bad = arm(2, 3, rewards=60, mean=0.1)
    ids = [a.candidate_id for a in active]
    taught, warned = (shares(planned([*active, other], active=ids)) for other in (good, bad))
    assert taught["1.1"] < 0.3 < 0.7 < warned["1.1"]


def test_a_cautious_belief_gives_new_levers_less() -> None:
    arms = [arm(1, 1, rewards=25, mean=0.5), arm(2, 2)]
    cautious = shares(planned(arms, scales=Scales(caution=0.2)))["2.2"]
    assert cautious < shares(planned(arms))["2.2"]


# Choices


def test_candidates_come_as_often_as_their_propensities_say() -> None:
    counts = Counter(chosen(SKEWED, seed=seed).candidate_id for seed in range(2_000))
    for candidate_id, share in shares(SKEWED).items():
        assert counts[candidate_id] / 2_000 == pytest.approx(share, abs=0.04)


def test_a_choice_reports_its_propensity_and_all_others() -> None:
    choice = chosen(SKEWED)
    assert choice.propensities == pytest.approx(shares(SKEWED))
    assert choice.propensity == choice.propensities[choice.candidate_id] > 0


def test_the_same_seed_chooses_the_same() -> None:
    assert chosen(SKEWED, seed=5) == chosen(SKEWED, seed=5)


# Duels


def test_half_of_the_rollouts_are_the_duels_and_a_fair_coin_decides() -> None:
    choices = [chosen(SKEWED, running=duel("1.1", "2.2"), seed=seed) for seed in range(2_000)]
    fought = [choice for choice in choices if choice.duel_number]
    assert len(fought) / 2_000 == pytest.approx(0.5, abs=0.04)
    sides = Counter(choice.candidate_id for choice in fought)
    assert set(sides) == {"1.1", "2.2"}
    assert sides["1.1"] / len(fought) == pytest.approx(0.5, abs=0.05)


def test_the_propensity_counts_both_ways_to_a_candidate() -> None:
    running = duel("1.1", "2.2")
    choices = [chosen(SKEWED, running=running, seed=seed) for seed in range(2_000)]
    expected = {"1.1": 0.25 + 0.05, "1.2": 0.1, "2.1": 0.15, "2.2": 0.25 + 0.2}
    counts = Counter(choice.candidate_id for choice in choices)
    for candidate_id, share in expected.items():
        assert counts[candidate_id] / 2_000 == pytest.approx(share, abs=0.04)
    assert all(choice.propensities == pytest.approx(expected) for choice in choices)
    assert all(choice.propensity == choice.propensities[choice.candidate_id] for choice in choices)


def test_a_duel_rollout_carries_the_number_and_the_prediction_made_before_it() -> None:
    running = duel(number=3, rewards=8, reward_sum=6.5)
    choice = chosen(EVEN, running=running, traffic_share=1.0)
    assert (choice.duel_number, choice.predicted_reward) == (3, 0.75)
    easy = chosen(EVEN, running=running, traffic_share=1.0, expected_deviation=0.125)
    assert easy.predicted_reward == 0.875


def test_a_prediction_stays_off_the_ends_where_a_bet_could_lose_everything() -> None:
    assert predicted_reward(duel(), 0.0) == 0.5
    assert predicted_reward(duel(), 0.7) == 0.98
    assert predicted_reward(duel(), -0.7) == 0.02


def test_other_rollouts_carry_neither() -> None:
    for choice in (chosen(EVEN), chosen(EVEN, running=duel(), traffic_share=1e-9)):
        assert (choice.duel_number, choice.predicted_reward) == (None, None)


@pytest.mark.parametrize(
    "over",
    [
        duel(state=DuelState.LOST),
        duel("1.1", "retired"),
        duel("retired", "2.2"),
        duel(rollouts=PromotionSettings().max_rollouts),
    ],
    ids=["ended", "challenger retired", "champion retired", "at its longest"],
)
def test_a_duel_that_is_over_or_lacks_a_side_gets_no_traffic(over: Duel) -> None:
    assert all(chosen(EVEN, running=over, seed=seed).duel_number is None for seed in range(20))


def test_fixed_ignores_a_duel() -> None:
    served = planned(grid(2, 2), strategy="fixed")
    for seed in range(20):
        choice = chosen(served, running=duel(), strategy="fixed", seed=seed)
        assert (choice.candidate_id, choice.duel_number) == ("1.1", None)
