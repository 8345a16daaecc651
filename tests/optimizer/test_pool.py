"""The factorial pool: combining lever versions, and letting go of those that cannot win."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from prefect_mipro.models.candidates import Candidate, Statistics
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.pool import combinations, parent, retirable
from prefect_mipro.optimizer.posterior import Posterior, posterior

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def candidate(
    number: int, levers: tuple[int, int], *, rewards: int = 0, mean: float = 0.5
) -> Candidate:
    return Candidate(
        candidate_id=f"c{number}",
        session_id="s",
        number=number,
        instruction_version=levers[0],
        demonstrations_version=levers[1],
        created_at=NOW,
        statistics=Statistics(
            rollouts=rewards,
            rewards=rewards,
            reward_sum=rewards * mean,
            reward_square_sum=rewards * mean,
        ),
    )


def belief_of(*candidates: Candidate) -> Posterior:
    return posterior(Evidence.of([c.arm for c in candidates]))


def losers(
    *candidates: Candidate,
    keep: tuple[str, ...] = (),
    by_hand: tuple[str, ...] = (),
    rewards: dict[str, int] | None = None,
) -> list[str]:
    counts = {c.candidate_id: c.statistics.rewards for c in candidates}
    return retirable(
        belief_of(*candidates),
        candidates,
        rewards=counts if rewards is None else rewards,
        keep=keep,
        by_hand=by_hand,
        rng=np.random.default_rng(0),
    )


def test_every_new_version_meets_every_old_one_of_the_other_lever() -> None:
    pool = [candidate(1, (1, 1)), candidate(2, (1, 2))]
    pairs = combinations(pool, instructions=[2], demonstrations=[3], room=9)
    assert sorted(pairs) == [(1, 3), (2, 1), (2, 2), (2, 3)]


def test_short_room_goes_to_the_partners_with_most_rewards() -> None:
    pool = [candidate(1, (1, 1), rewards=5), candidate(2, (1, 2), rewards=50)]
    assert combinations(pool, instructions=[2], demonstrations=[], room=1) == [(2, 2)]
    assert combinations(pool, instructions=[2], demonstrations=[], room=0) == []


def test_retired_partners_and_known_pairs_are_left_out() -> None:
    retired = candidate(2, (1, 2)).model_copy(update={"retired_at": NOW})
    pool = [candidate(1, (1, 1)), retired, candidate(3, (2, 1))]
    assert combinations(pool, instructions=[2], demonstrations=[3], room=9) == [(1, 3), (2, 3)]


def test_every_new_version_gets_a_pair_before_any_gets_two() -> None:
    pool = [candidate(1, (1, 1), rewards=50), candidate(2, (1, 2), rewards=5)]
    pairs = combinations(pool, instructions=[2, 3], demonstrations=[3], room=3)
    assert {pair[0] for pair in pairs} >= {2, 3}
    assert 3 in {pair[1] for pair in pairs}


def test_the_parent_is_drawn_more_often_the_likelier_it_is_the_best() -> None:
    pool = [
        candidate(1, (1, 1), rewards=100, mean=0.5),
        candidate(2, (2, 1), rewards=100, mean=0.53),
        candidate(3, (3, 1), rewards=100, mean=0.1),
    ]
    drawn = [parent(belief_of(*pool), pool, rng=np.random.default_rng(seed)) for seed in range(200)]
    assert drawn.count(2) > drawn.count(1) > 20
    assert drawn.count(3) == 0


def test_a_retired_instruction_is_no_parent() -> None:
    best = candidate(2, (2, 1), rewards=200, mean=0.95)
    retired = best.model_copy(update={"retired_at": NOW})
    pool = [candidate(1, (1, 1), rewards=200, mean=0.1), retired]
    assert parent(belief_of(*pool), pool, rng=np.random.default_rng(0)) == 1


def test_a_version_that_cannot_win_goes_with_all_its_candidates() -> None:
    pool = [
        candidate(1, (1, 1), rewards=100, mean=0.2),
        candidate(2, (1, 2), rewards=100, mean=0.9),
        candidate(3, (1, 3), rewards=100, mean=0.1),
        candidate(4, (2, 2), rewards=100, mean=0.9),
        candidate(5, (2, 3)),
    ]
    assert losers(*pool, keep=("c1",)) == ["c3", "c5"]


def test_what_is_kept_stays_however_bad() -> None:
    pool = [
        candidate(1, (1, 1), rewards=200, mean=0.1),
        candidate(2, (1, 2), rewards=200, mean=0.9),
    ]
    assert losers(*pool, keep=("c1",)) == []
    assert losers(*pool) == ["c1"]


def test_a_version_with_few_rewards_is_not_judged() -> None:
    pool = [
        candidate(1, (1, 1), rewards=200, mean=0.9),
        candidate(2, (1, 2), rewards=10, mean=0.0),
    ]
    assert losers(*pool, keep=("c1",)) == []


def test_rewards_that_the_belief_does_not_rest_on_judge_nobody() -> None:
    pool = [
        candidate(1, (1, 1), rewards=200, mean=0.9),
        candidate(2, (1, 2), rewards=200, mean=0.1),
    ]
    assert losers(*pool) == ["c2"]
    assert losers(*pool, rewards={"c1": 200, "c2": 29}) == []


def test_retired_candidates_are_not_retired_again() -> None:
    bad = candidate(2, (1, 2), rewards=200, mean=0.1).model_copy(update={"retired_at": NOW})
    assert losers(candidate(1, (1, 1), rewards=200, mean=0.9), bad) == []


def test_a_candidate_made_by_hand_gets_a_fair_number_of_rewards() -> None:
    best = candidate(1, (1, 1), rewards=400, mean=0.9)
    early = candidate(2, (2, 2), rewards=99, mean=0.1)
    late = candidate(2, (2, 2), rewards=100, mean=0.1)
    assert losers(best, early) == ["c2"]
    assert losers(best, early, by_hand=("c2",)) == []
    assert losers(best, late, by_hand=("c2",)) == ["c2"]
