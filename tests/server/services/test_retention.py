"""Retention: sweeps that go on where the last one ended, beside the calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from prefect_mipro.server.services.retention import PIECE, Retention
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.sql import SqlStore
from tests.server.store.records import at, call, create, frame, pin, reward, rollout, trace

DAY = 86_400


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path}/mipro.db")
    await create(opened)
    await pin(opened, rollout())
    yield opened
    await opened.close()


async def call_on(store: SqlStore, *days: float) -> None:
    """A call at each of these times."""
    calls = [
        call(
            trace(f"trace_{day}_{number}", created_at=at(day * DAY)),
            frame(
                f"frame_{day}_{number}",
                trace_ids=(f"trace_{day}_{number}",),
                created_at=at(day * DAY),
            ),
        )
        for number, day in enumerate(days)
    ]
    await store.record_calls(calls)


class Present:
    """A clock that moves when told."""

    day = 0.0

    def __call__(self) -> datetime:
        return at(self.day * DAY)


def retention(store: SqlStore, present: Present) -> Retention:
    return Retention(store, days=30, clock=present, pause_seconds=0)


async def test_each_text_goes_when_its_time_is_up(store: SqlStore) -> None:
    present = Present()
    sweeps = retention(store, present)
    await call_on(store, 0, 1, 2)
    await store.add_reward(reward(feedback="well said", received_at=at(DAY)))
    found = []
    for day in (30, 30.5, 31.5, 31.5, 99):
        present.day = day
        found.append(await sweeps.sweep())
    assert found == [0, 1, 2, 0, 1]


async def test_what_comes_after_a_sweep_is_found_by_the_next(store: SqlStore) -> None:
    present = Present()
    sweeps = retention(store, present)
    present.day = 40
    await call_on(store, 1)
    assert await sweeps.sweep() == 1
    # Later calls that say an earlier time: an import brings those.
    await call_on(store, 2, 3)
    assert await sweeps.sweep() == 2


async def test_more_than_a_piece_is_swept_at_once(store: SqlStore) -> None:
    present = Present()
    present.day = 40
    await call_on(store, *[1] * (2 * PIECE + 1))
    assert await retention(store, present).sweep() == 2 * PIECE + 1
