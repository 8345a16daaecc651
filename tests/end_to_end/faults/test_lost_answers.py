"""A database that has committed, and whose answer is lost: what is repeated is counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest

from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from tests.end_to_end.faults.faulty_store import FaultyStore
from tests.end_to_end.faults.served import Counted, Served, Session, served
from tests.server.scripted_upstream import ScriptedUpstream


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    file = tmp_path_factory.mktemp("lost") / "mipro.db"
    store = asyncio.run(open_store(f"sqlite+aiosqlite:///{file}"))
    yield FaultyStore(store)
    asyncio.run(store.close())


@pytest.fixture(scope="module")
def backend(store: FaultyStore) -> Iterator[Served]:
    with (
        ScriptedUpstream() as upstream,
        served(upstream.url, store=cast(Store, store)) as backend,
    ):
        yield backend


@pytest.fixture
def session(backend: Served) -> Session:
    session = backend.session()
    session.goes_on("first")
    return session


def test_a_reward_that_is_sent_again_is_told_to_be_there(
    session: Session, store: FaultyStore
) -> None:
    assert session.call("r1").status_code == 200
    with store.losing("add_reward"):
        assert session.reward("r1").status_code == 503
    again = session.reward("r1").json()
    assert (again["duplicate"], again["attached"]) == (True, True)
    assert session.counted() == Counted(rollouts=2, calls=2, rewards=2)


def test_a_call_that_is_made_again_has_the_candidate_that_was_pinned(
    session: Session, store: FaultyStore
) -> None:
    with store.losing("pin"):
        refused = session.call("r1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "StoreFailed")
    assert session.call("r1").status_code == 200
    assert session.counted() == Counted(rollouts=2, calls=2, rewards=1)
    session.goes_on()


def test_what_calls_leave_behind_is_written_once_and_nothing_is_said_to_be_lost(
    session: Session, backend: Served, store: FaultyStore
) -> None:
    journal = backend.backend.serving.journal
    lost, failures = journal.counts.lost, journal.counts.failures
    with store.losing("record_calls"):
        for number in range(3):
            assert session.call(f"r{number}").status_code == 200
        session.status()
    assert session.counted() == Counted(rollouts=4, calls=4, rewards=1)
    assert journal.counts.failures > failures
    assert journal.counts.lost == lost
    session.goes_on()


def test_a_reward_counts_whatever_becomes_of_what_follows_it(
    session: Session, store: FaultyStore
) -> None:
    rollouts = [f"r{number}" for number in range(8)]
    for rollout_id in rollouts:
        assert session.call(rollout_id).status_code == 200
    # After each eighth reward the optimizer looks for those that are overdue.
    with store.losing("give_up", "reward_blocks"):
        for rollout_id in rollouts:
            assert session.reward(rollout_id).status_code == 200
    assert session.counted() == Counted(rollouts=9, calls=9, rewards=9)
    session.goes_on()
