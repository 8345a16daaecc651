"""What one app shows to Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from prefect_mipro.errors import StoreFailed
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.records import Overview, StateTotals
from prefect_mipro.server.telemetry.metrics import OVERVIEW_FRESH_SECONDS, Meters, RewardOutcome


class Clock:
    """Stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Sessions:
    """A store's overview that counts how often it was read, and may be out of reach."""

    reads = 0
    fails = False

    async def overview(self) -> Overview:
        self.reads += 1
        await asyncio.sleep(0)
        if self.fails:
            raise StoreFailed("out of reach")
        totals = dict.fromkeys(SessionState, StateTotals())
        totals[SessionState.PAUSED] = StateTotals(sessions=2, rollouts=30, rewards=self.reads)
        return Overview(totals, active_candidates=5, retired_candidates=3)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def meters(clock: Clock, sessions: Sessions) -> Meters:
    meters = Meters(timer=clock)
    meters.watch_store(sessions.overview)
    return meters


def rewards(meters: Meters) -> float | None:
    return meters.registry.get_sample_value("mipro_session_rewards", {"session_state": "paused"})


async def test_what_the_store_knows_is_shown_by_session_state(meters: Meters) -> None:
    await meters.refresh()
    value = meters.registry.get_sample_value
    assert value("mipro_store_up") == 1
    assert value("mipro_sessions", {"session_state": "paused"}) == 2
    assert value("mipro_sessions", {"session_state": "running"}) == 0
    assert value("mipro_session_rollouts", {"session_state": "paused"}) == 30
    assert value("mipro_candidates", {"state": "retired"}) == 3


async def test_the_store_is_asked_again_only_after_a_while(
    meters: Meters, sessions: Sessions, clock: Clock
) -> None:
    await meters.refresh()
    clock.now += OVERVIEW_FRESH_SECONDS - 0.1
    await meters.refresh()
    assert (sessions.reads, rewards(meters)) == (1, 1)
    clock.now += 0.2
    await meters.refresh()
    assert (sessions.reads, rewards(meters)) == (2, 2)


async def test_scrapes_at_one_moment_share_one_read(meters: Meters, sessions: Sessions) -> None:
    await asyncio.gather(*(meters.refresh() for _ in range(5)))
    assert sessions.reads == 1


async def test_a_store_out_of_reach_is_down_and_has_no_old_numbers(
    meters: Meters, sessions: Sessions, clock: Clock
) -> None:
    await meters.refresh()
    clock.now += OVERVIEW_FRESH_SECONDS + 1
    sessions.fails = True
    await meters.refresh()
    assert meters.registry.get_sample_value("mipro_store_up") == 0
    assert rewards(meters) is None


def test_two_apps_count_apart() -> None:
    one, other = Meters(), Meters()
    one.rewards.add(RewardOutcome.ATTACHED)

    def attached(meters: Meters) -> float | None:
        return meters.registry.get_sample_value("mipro_rewards_total", {"outcome": "attached"})

    assert (attached(one), attached(other)) == (1, 0)


async def test_names_and_units_follow_the_conventions(meters: Meters) -> None:
    await meters.refresh()
    for name, kind in _types(generate_latest(meters.registry).decode()):
        assert name.startswith(("mipro_", "process_", "python_"))
        assert (kind == "counter") == name.endswith("_total"), name
        assert kind != "histogram" or name.endswith("_seconds"), name
        assert not name.endswith("_created"), name


def _types(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            yield name, kind
