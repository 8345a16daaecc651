"""What becomes of a session when the clock of its server is set forward or back by a day."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from prefect_mipro.server.ids import utc_now
from tests.end_to_end.faults.served import Counted, Served, served
from tests.fake_upstream import FakeUpstream, better_with_demonstrations

DAY = timedelta(days=1)
REWARDS_OF_A_ROUND = 20
IN_ORDER = "SELECT rollout_id FROM mipro_rollouts WHERE session_id = ? ORDER BY position"


@dataclass
class JumpingClock:
    """The present, but for what it was set forward or back."""

    offset: timedelta = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.offset


@pytest.fixture(scope="module")
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock") / "mipro.db"


@pytest.fixture(scope="module")
def backend(file: Path, clock: JumpingClock) -> Iterator[Served]:
    with (
        FakeUpstream(better_with_demonstrations) as upstream,
        served(upstream.url, database_url=f"sqlite:///{file}", clock=clock) as backend,
    ):
        yield backend


@pytest.fixture(params=[DAY, -DAY], ids=["forward", "back"])
def jump(request: pytest.FixtureRequest, clock: JumpingClock) -> timedelta:
    clock.offset = timedelta()
    jump: timedelta = request.param
    return jump


def test_calls_and_rewards_go_on_in_their_order_and_none_is_given_up(
    backend: Served, clock: JumpingClock, jump: timedelta, file: Path
) -> None:
    session = backend.session()
    session.goes_on("before")
    assert session.call("open").status_code == 200
    clock.offset = jump
    session.goes_on("after")
    assert session.reward("open").json()["attached"]
    assert session.counted() == Counted(rollouts=3, calls=3, rewards=3)
    assert session.status()["reward_flow"]["missing"] == 0
    with closing(sqlite3.connect(file)) as facts:
        rows = facts.execute(IN_ORDER, [session.session_id]).fetchall()
    assert [row[0] for row in rows] == ["before", "open", "after"]


def test_the_next_proposals_are_not_put_off(
    backend: Served, clock: JumpingClock, jump: timedelta
) -> None:
    session = backend.session(online_proposer_min_rollouts=4, online_proposer_min_seconds=60)
    clock.offset = jump
    for number in range(REWARDS_OF_A_ROUND):
        assert session.call(f"r{number}").status_code == 200
        assert session.reward(f"r{number}").status_code == 200
    while session.status()["proposer"]["rounds"] == 0:
        pass  # it goes on beside the calls
    session.goes_on()


def test_a_budget_of_time_goes_by_the_clock(
    backend: Served, clock: JumpingClock, jump: timedelta
) -> None:
    session = backend.session(max_seconds=3_600)
    session.goes_on("before")
    clock.offset = jump
    answer = session.call("after")
    assert answer.status_code == 200
    status = session.status()
    ended = "succeeded" if jump > timedelta() else "running"
    assert (status["status"], "max_seconds" in (status["stop_reason"] or "")) == (
        ended,
        jump > timedelta(),
    )
