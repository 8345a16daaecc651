"""Evidence holds every reward of the candidates once, in the stretch of traffic it belongs to."""

from __future__ import annotations

import pytest

from prefect_mipro.models.candidates import Statistics
from prefect_mipro.optimizer.evidence import Evidence
from tests.optimizer.arms import arm, block

ARMS = [arm(1, 1), arm(1, 2)]
BLOCKS = [
    block("1.1", 1, rewards=6, mean=0.5),
    block("1.2", 1, rewards=2, mean=1.0),
    block("1.1", 51, rewards=8, mean=0.25, deviation_sum=0.5),
]


def test_without_blocks_all_rewards_are_of_one_stretch() -> None:
    evidence = Evidence.of([arm(1, 1, rewards=4, mean=0.5), arm(1, 2, in_flight=3)])
    assert evidence.counts.tolist() == [[4.0], [0.0]]
    assert evidence.sums.tolist() == [[2.0], [0.0]]
    assert evidence.square_sum == 2.0
    assert evidence.pending.tolist() == [0.0, 3.0]
    assert evidence.rewards == 4


def test_blocks_become_stretches_less_what_their_examples_were_expected_to_earn() -> None:
    evidence = Evidence.of(ARMS, BLOCKS)
    assert evidence.counts.tolist() == [[6.0, 8.0], [2.0, 0.0]]
    assert evidence.sums.tolist() == [[3.0, 1.5], [2.0, 0.0]]
    assert evidence.square_sum == pytest.approx(7.0)
    assert evidence.rewards == 16


def test_blocks_count_instead_of_the_statistics_which_remember_earlier_epochs() -> None:
    evidence = Evidence.of([arm(1, 1, rewards=400, mean=0.9), arm(1, 2)], BLOCKS)
    assert evidence.rewards == 16


def test_the_order_of_the_blocks_does_not_matter() -> None:
    there, back = Evidence.of(ARMS, BLOCKS), Evidence.of(ARMS, BLOCKS[::-1])
    assert there.counts.tolist() == back.counts.tolist()
    assert there.sums.tolist() == back.sums.tolist()


def test_blocks_of_other_candidates_are_ignored() -> None:
    evidence = Evidence.of(ARMS, [*BLOCKS, block("9.9", 101, rewards=5, mean=1.0)])
    assert evidence.counts.shape == (2, 2)
    assert evidence.square_sum == pytest.approx(7.0)


def test_an_epoch_that_has_just_begun_is_one_stretch_without_rewards() -> None:
    evidence = Evidence.of([arm(1, 1, rewards=9, mean=0.5, in_flight=2)], [])
    assert evidence.counts.tolist() == [[0.0]]
    assert evidence.pending.tolist() == [2.0]


def test_a_lever_has_the_rewards_of_all_candidates_it_is_in() -> None:
    arms = [arm(1, 1, rewards=5), arm(1, 2, rewards=3), arm(2, 2, rewards=1)]
    assert Evidence.of(arms).lever_rewards().tolist() == [[8.0, 5.0], [8.0, 4.0], [1.0, 4.0]]


# Missing rewards


def test_missing_rewards_are_neither_rewards_nor_in_flight() -> None:
    evidence = Evidence.of([arm(1, 1, rewards=4, mean=0.5, missing=6)])
    assert evidence.rewards == 4
    assert evidence.pending.tolist() == [0.0]


def test_a_missing_reward_counts_as_what_is_imputed() -> None:
    evidence = Evidence.of([arm(1, 1, rewards=4, mean=0.5, missing=6)], impute=0.25)
    assert evidence.rewards == 10
    assert evidence.sums.tolist() == [[2.0 + 6 * 0.25]]
    assert evidence.square_sum == pytest.approx(2.0 + 6 * 0.25**2)


def test_imputed_rewards_are_spread_over_the_stretches_as_the_others_are() -> None:
    failing = [arm(1, 1), arm(1, 2, missing=8)]
    evidence = Evidence.of(failing, BLOCKS, impute=0.0)
    assert evidence.counts.tolist() == [[6.0, 8.0], [2.0 + 4.0, 4.0]]
    assert evidence.sums.tolist() == [[3.0, 1.5], [2.0, 0.0]]


def test_a_candidate_whose_rewards_are_all_missing_can_be_judged_from_the_start() -> None:
    evidence = Evidence.of([arm(1, 1), arm(1, 2, missing=8)], [], impute=0.0)
    assert evidence.counts.tolist() == [[0.0], [8.0]]


def test_a_reward_that_came_after_it_was_given_up_leaves_nothing_in_flight() -> None:
    statistics = Statistics(rollouts=3, rewards=3, missing=1, reward_sum=3.0)
    late = arm(1, 1).model_copy(update={"statistics": statistics})
    assert Evidence.of([late]).pending.tolist() == [0.0]
