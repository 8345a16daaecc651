"""Turns that keep their distance, whoever takes them."""

from __future__ import annotations

import pytest

from prefect_mipro.tasks.pace import Pace


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_turn_is_at_once_and_each_later_one_a_gap_after(clock: Clock) -> None:
    pace = Pace(4.0, clock=clock)
    assert [pace.take() for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_time_that_passes_brings_the_next_turn_nearer(clock: Clock) -> None:
    pace = Pace(4.0, clock=clock)
    pace.take()
    clock.now += 0.2
    assert pace.away() == pytest.approx(0.05)
    assert pace.take() == pytest.approx(0.05)


def test_after_a_stall_there_is_no_burst(clock: Clock) -> None:
    pace = Pace(4.0, clock=clock)
    pace.take()
    clock.now += 60
    assert [pace.take() for _ in range(3)] == [0.0, 0.25, 0.5]


def test_asking_how_far_a_turn_is_does_not_take_it(clock: Clock) -> None:
    pace = Pace(4.0, clock=clock)
    assert [pace.away(), pace.away(), pace.take()] == [0.0, 0.0, 0.0]


def test_without_a_limit_every_turn_is_now(clock: Clock) -> None:
    pace = Pace(None, clock=clock)
    assert {pace.take() for _ in range(100)} == {0.0}
