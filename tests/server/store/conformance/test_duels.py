"""Duels: opened under a number, observed in order, ended once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_mipro.errors import CandidateNotFound, Conflict, NotFound, SessionNotFound
from prefect_mipro.models.candidates import DuelObservation, DuelState
from prefect_mipro.server.store.interface import Store
from tests.server.store.records import (
    BASELINE,
    START,
    at,
    challenge,
    create,
    duel,
    event_types,
    reward,
    rollout,
)


@pytest.fixture
async def dueling(store: Store) -> Store:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    return store


async def test_a_duel_reads_back_as_it_was(dueling: Store) -> None:
    assert await dueling.duel("s1") == duel()
    assert await event_types(dueling, since=2) == ["duel.opened"]


async def test_without_a_duel_there_is_none(store: Store) -> None:
    await create(store)
    assert await store.duel("s1") is None
    with pytest.raises(SessionNotFound):
        await store.duel("s2")


async def test_the_newest_duel_is_found(dueling: Store) -> None:
    await dueling.close_duel("s1", 1, DuelState.EXPIRED, at=at(1), reason="too long")
    await dueling.open_duel(duel(2))
    assert await dueling.duel("s1") == duel(2)


async def test_a_number_that_is_taken_is_a_conflict(dueling: Store) -> None:
    with pytest.raises(Conflict):
        await dueling.open_duel(duel(predicted_lift=0.9))
    assert await dueling.duel("s1") == duel()


async def test_of_those_who_race_to_open_a_duel_one_wins(store: Store) -> None:
    await create(store)
    await challenge(store)
    results = await asyncio.gather(
        *(store.open_duel(duel()) for _ in range(8)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 7 + ["NoneType"]
    assert await event_types(store, since=2) == ["duel.opened"]


async def test_a_duel_is_fought_by_candidates_of_the_session(store: Store) -> None:
    await create(store)
    with pytest.raises(CandidateNotFound, match="cand_2"):
        await store.open_duel(duel())
    with pytest.raises(SessionNotFound):
        await store.open_duel(duel(session_id="s2"))
    assert await store.duel("s1") is None


async def test_observations_come_in_the_order_of_the_rewards(dueling: Store) -> None:
    fought: dict[str, Any] = {"duel_number": 1, "predicted_reward": 0.5}
    await dueling.pin(rollout("r1", BASELINE, **fought))
    await dueling.pin(rollout("r2", "cand_2", **fought))
    await dueling.pin(rollout("r3", "cand_2", **{**fought, "predicted_reward": 0.75}))
    await dueling.pin(rollout("r4", "cand_2", **fought))
    await dueling.pin(rollout("r5", "cand_2"))
    for rollout_id, value in (("r3", 1.0), ("r5", 0.5), ("r1", 0.25), ("r2", 0.0)):
        await dueling.add_reward(reward(f"reward_{rollout_id}", rollout_id, value))
    assert await dueling.duel_observations("s1", 1) == (
        DuelObservation(is_challenger=True, reward=1.0, predicted_reward=0.75),
        DuelObservation(is_challenger=False, reward=0.25, predicted_reward=0.5),
        DuelObservation(is_challenger=True, reward=0.0, predicted_reward=0.5),
    )


async def test_a_won_duel_makes_its_challenger_the_champion(dueling: Store) -> None:
    await dueling.close_duel("s1", 1, DuelState.WON, at=at(1), reason="e-value 25")
    found = await dueling.duel("s1")
    assert found is not None
    assert (found.state, found.ended_at) == (DuelState.WON, at(1))
    session = await dueling.session("s1")
    assert (session.champion_id, session.updated_at) == ("cand_2", at(1))
    assert await event_types(dueling, since=3) == ["duel.closed", "champion.promoted"]


@pytest.mark.parametrize("state", [DuelState.ABANDONED, DuelState.EXPIRED])
async def test_any_other_end_leaves_the_champion(dueling: Store, state: DuelState) -> None:
    await dueling.close_duel("s1", 1, state, at=at(1), reason="")
    assert (await dueling.session("s1")).champion_id == BASELINE
    assert await event_types(dueling, since=3) == ["duel.closed"]


async def test_a_duel_that_has_ended_stays(dueling: Store) -> None:
    await dueling.close_duel("s1", 1, DuelState.EXPIRED, at=at(1), reason="too long")
    await dueling.close_duel("s1", 1, DuelState.WON, at=at(2), reason="late")
    found = await dueling.duel("s1")
    assert found is not None
    assert (found.state, found.ended_at) == (DuelState.EXPIRED, at(1))
    assert (await dueling.session("s1")).champion_id == BASELINE


async def test_unknown_duels_and_sessions_are_named(dueling: Store) -> None:
    with pytest.raises(NotFound, match="duel 2"):
        await dueling.close_duel("s1", 2, DuelState.WON, at=START, reason="")
    with pytest.raises(NotFound, match="duel 2"):
        await dueling.duel_observations("s1", 2)
    with pytest.raises(SessionNotFound):
        await dueling.close_duel("s2", 1, DuelState.WON, at=START, reason="")
    with pytest.raises(SessionNotFound):
        await dueling.duel_observations("s2", 1)
