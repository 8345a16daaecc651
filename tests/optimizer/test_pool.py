"""The factorial pool: combining lever versions, and letting go of those that cannot win."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from prefect_mipro.models.candidates import Arm, Candidate, Statistics
from prefect_mipro.optimizer.pool import combinations, retirable
from prefect_mipro.optimizer.posterior import posterior

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


def losers(*candidates: Candidate, keep: tuple[str, ...] = ()) -> list[str]:
    belief = posterior(
        [
            Arm(candidate_id=c.candidate_id, levers=c.levers, statistics=c.statistics)
            for c in candidates
        ]
    )
    return retirable(belief, candidates, keep=keep, rng=np.random.default_rng(0))


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


def test_a_version_that_cannot_win_goes_with_all_its_candidates() -> None:
    pool = [
        candidate(1, (1, 1), rewards=100, mean=0.2),
        candidate(2, (1, 2), rewards=100, mean=0.9),
        candidate(3, (1, 3), rewards=100, mean=0.1),
        candidate(4, (2, 3)),
    ]
    assert losers(*pool, keep=("c1",)) == ["c3", "c4"]


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
