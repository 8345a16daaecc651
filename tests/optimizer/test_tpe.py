"""optuna's sampler shares the traffic out as MIPROv2 would, at a cost that does not grow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from prefect_mipro.optimizer import tpe
from prefect_mipro.optimizer.evidence import Vector

LEVERS = list(product(range(1, 5), range(1, 4)))


def shares(
    levers: Sequence[tuple[int, ...]],
    means: Vector,
    *,
    rewards: int | Vector = 20,
    pending: Vector | None = None,
    seed: int = 0,
) -> dict[tuple[int, ...], float]:
    counts = np.broadcast_to(np.float64(rewards), len(levers))
    vector = tpe.shares(
        levers,
        rewards=counts,
        reward_sums=counts * means,
        pending=np.zeros(len(levers)) if pending is None else pending,
        rng=np.random.default_rng(seed),
    )
    assert vector.sum() == pytest.approx(1.0)
    return dict(zip(levers, vector.tolist(), strict=True))


def rising() -> Vector:
    """Later versions are better, most of all together."""
    return np.array([0.1 + 0.1 * i + 0.1 * d for i, d in LEVERS])


def test_the_library_is_there() -> None:
    assert tpe.available()


def test_the_best_levers_get_most_of_the_traffic() -> None:
    found = np.mean([list(shares(LEVERS, rising(), seed=seed).values()) for seed in range(10)], 0)
    best = {LEVERS[k] for k in np.argsort(-found)[:3]}
    assert (4, 3) in best
    assert found[LEVERS.index((4, 3))] > 2 / 12


def test_the_same_seed_shares_the_same() -> None:
    assert shares(LEVERS, rising(), seed=3) == shares(LEVERS, rising(), seed=3)


def test_at_first_ten_candidates_finish_a_minibatch_each() -> None:
    found = shares(LEVERS, np.full(12, 0.5), rewards=0)
    assert sorted(found.values()) == [0.0] * 2 + [pytest.approx(0.1)] * 10


def test_those_that_have_begun_go_first() -> None:
    begun = np.array([3.0] * 10 + [0.0] * 2)
    found = shares(LEVERS[::-1], np.full(12, 0.5), rewards=begun)
    assert list(found.values())[10:] == [0.0, 0.0]


def test_the_space_grows_with_the_candidates() -> None:
    new = (5, 4)
    counts = np.array([20.0] * 12 + [0.0])
    found = [
        shares([*LEVERS, new], np.full(13, 0.5), rewards=counts, seed=seed)[new]
        for seed in range(20)
    ]
    assert np.mean(found) > 0


def test_combinations_that_are_not_in_play_get_nothing() -> None:
    some = [levers for levers in LEVERS if sum(levers) != 7]
    found = shares(some, np.array([0.2 + 0.1 * i for i, _ in some]), rewards=40)
    assert len(found) == len(some)


def test_a_single_candidate_gets_everything() -> None:
    assert shares([(1, 1)], np.array([0.5]), rewards=500) == {(1, 1): 1.0}


@pytest.mark.parametrize("rewards", [100, 100_000])
def test_no_session_is_too_long(rewards: int) -> None:
    assert len(shares(LEVERS, rising(), rewards=rewards)) == 12


def test_rollouts_in_flight_are_running_trials() -> None:
    waiting = np.zeros(12)
    waiting[LEVERS.index((4, 3))] = 400.0
    plain, busy = (
        np.mean([shares(LEVERS, rising(), pending=p, seed=s)[(4, 3)] for s in range(10)])
        for p in (None, waiting)
    )
    assert busy < plain
