"""Calls at a time, calls a minute, and who has to wait or come back."""

from __future__ import annotations

import asyncio

import pytest

from prefect_mipro.errors import Overloaded
from prefect_mipro.server.upstream.interface import UpstreamCounts
from prefect_mipro.server.upstream.limits import Gate, Limits, Rate


def test_a_rate_lets_so_many_start_at_once() -> None:
    rate = Rate(2, window_seconds=60.0)
    rate.start(0.0)
    assert rate.wait_seconds(0.0) == 0.0
    rate.start(0.0)
    assert rate.wait_seconds(0.0) == 60.0


def test_each_start_makes_room_once_its_window_is_over() -> None:
    rate = Rate(2, window_seconds=60.0)
    rate.start(0.0)
    rate.start(10.0)
    assert rate.wait_seconds(45.0) == 15.0
    rate.start(60.0)
    assert rate.wait_seconds(61.0) == 9.0
    assert rate.wait_seconds(80.0) == 0.0


async def test_a_gate_without_limits_lets_everybody_pass() -> None:
    gate = Gate(Limits(), UpstreamCounts(), name="m")
    for _ in range(1_000):
        await gate.enter()
        await gate.turn()


async def test_one_more_than_the_limit_waits_until_one_leaves() -> None:
    gate = Gate(Limits(max_concurrent_calls=2), UpstreamCounts(), name="m")
    await gate.enter()
    await gate.enter()
    third = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    assert not third.done()
    gate.leave()
    await third


async def test_one_more_than_may_wait_is_told_to_come_back() -> None:
    gate = Gate(
        Limits(max_concurrent_calls=1, max_waiting_calls=1), UpstreamCounts(), name="http://m/v1"
    )
    await gate.enter()
    waiting = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"1 calls wait for http://m/v1 already") as error:
        await gate.enter()
    assert error.value.status == 429
    assert error.value.retry_after_seconds == 1.0
    gate.leave()
    await waiting


async def test_who_gives_up_waiting_makes_room_for_another() -> None:
    gate = Gate(Limits(max_concurrent_calls=1, max_waiting_calls=1), UpstreamCounts(), name="m")
    await gate.enter()
    impatient = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    patient = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    gate.leave()
    await patient


async def test_one_more_than_a_minute_bears_is_told_when_to_come_back() -> None:
    gate = Gate(Limits(calls_per_minute=2), UpstreamCounts(), name="m")
    await gate.turn()
    await gate.turn()
    with pytest.raises(Overloaded, match="2 calls went to m within a minute") as error:
        await gate.turn()
    assert error.value.retry_after_seconds == pytest.approx(60.0, abs=5.0)
