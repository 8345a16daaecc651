"""Waits between repeats."""

from __future__ import annotations

from prefect_mipro.server.upstream.patience import BackOff


def test_waits_double_and_lose_up_to_half_by_chance() -> None:
    longest = BackOff(first_wait_seconds=1.0, longest_wait_seconds=3.0, chance=lambda: 0.0)
    shortest = BackOff(first_wait_seconds=1.0, longest_wait_seconds=3.0, chance=lambda: 1.0)
    assert [longest.seconds(repeat) for repeat in range(3)] == [1.0, 2.0, 3.0]
    assert [shortest.seconds(repeat) for repeat in range(3)] == [0.5, 1.0, 1.5]
