"""Duels: opened under a number, observed in order, ended once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from prefect_mipro.errors import CandidateNotFound, Conflict, NotFound, SessionNotFound
from prefect_mipro.models.candidates import DuelObservation, DuelState
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    START,
    at,
    challenge,
    create,
    duel,
    event_types,
    pin,
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


async def fight(store: Store, *candidate_ids: str) -> None:
    """Rollouts of the duel, named by their positions; what was predicted of each differs."""
    for position, candidate_id in enumerate(candidate_ids, start=1):
        predicted = {"duel_number": 1, "predicted_reward": position / 8}
        await pin(store, rollout(f"r{position}", candidate_id, **predicted))


async def earn(store: Store, values: Mapping[int, float]) -> None:
    for position, value in values.items():
        await store.add_reward(reward(f"reward_{position}", f"r{position}", value))


def seen(position: int, value: float, *, is_challenger: bool = False) -> DuelObservation:
    return DuelObservation(is_challenger=is_challenger, reward=value, predicted_reward=position / 8)


async def test_observations_come_in_the_order_of_the_pins(dueling: Store) -> None:
    await fight(dueling, BASELINE, "cand_2", "cand_2", BASELINE)
    await earn(dueling, {3: 1.0, 4: 0.5, 1: 0.25, 2: 0.0})
    assert await dueling.duel_observations("s1", 1) == (
        seen(1, 0.25),
        seen(2, 0.0, is_challenger=True),
        seen(3, 1.0, is_challenger=True),
        seen(4, 0.5),
    )


async def test_a_reward_is_observed_once_all_before_it_are_settled(dueling: Store) -> None:
    await fight(dueling, BASELINE, "cand_2", BASELINE)
    await earn(dueling, {1: 0.25, 3: 0.5})
    assert await dueling.duel_observations("s1", 1) == (seen(1, 0.25),)
    await earn(dueling, {2: 1.0})
    assert len(await dueling.duel_observations("s1", 1)) == 3


async def test_observations_wait_for_rollouts_outside_of_the_duel_too(dueling: Store) -> None:
    await pin(dueling, rollout("other"))
    await fight(dueling, BASELINE)
    await earn(dueling, {1: 0.25})
    assert await dueling.duel_observations("s1", 1) == ()
    await dueling.add_reward(reward("reward_other", "other", 1.0))
    assert await dueling.duel_observations("s1", 1) == (seen(1, 0.25),)


async def test_rollouts_of_the_duel_beyond_the_watermark_are_awaited(dueling: Store) -> None:
    await fight(dueling, BASELINE, "cand_2", BASELINE)
    await pin(dueling, rollout("other"))
    assert await dueling.awaited_in_duel("s1", 1) == 3
    await earn(dueling, {1: 0.25, 3: 0.5})
    assert await dueling.awaited_in_duel("s1", 1) == 2
    await dueling.give_up("s1", after_rewards=1, pinned_before=at(-1), at=at(1))
    assert await dueling.awaited_in_duel("s1", 1) == 0


async def test_a_rollout_that_was_given_up_is_left_out_or_has_the_imputed_reward(
    dueling: Store,
) -> None:
    await fight(dueling, BASELINE, "cand_2", BASELINE)
    await earn(dueling, {1: 0.25, 3: 0.5})
    await dueling.give_up("s1", after_rewards=1, pinned_before=at(-1), at=at(1))
    left_out = (seen(1, 0.25), seen(3, 0.5))
    imputed = (seen(1, 0.25), seen(2, 0.125, is_challenger=True), seen(3, 0.5))
    assert await dueling.duel_observations("s1", 1) == left_out
    assert await dueling.duel_observations("s1", 1, impute=0.125) == imputed
    # Its reward comes too late to change what was seen.
    await earn(dueling, {2: 1.0})
    assert await dueling.duel_observations("s1", 1) == left_out
    assert await dueling.duel_observations("s1", 1, impute=0.125) == imputed


async def test_an_imputed_reward_of_zero_is_one(dueling: Store) -> None:
    await fight(dueling, "cand_2")
    await dueling.give_up("s1", after_rewards=1, pinned_before=at(1), at=at(1))
    assert await dueling.duel_observations("s1", 1, impute=0.0) == (
        seen(1, 0.0, is_challenger=True),
    )


async def test_a_rollout_that_waits_is_not_imputed(dueling: Store) -> None:
    await fight(dueling, BASELINE, "cand_2")
    await earn(dueling, {1: 0.25})
    assert await dueling.duel_observations("s1", 1, impute=0.5) == (seen(1, 0.25),)


async def test_each_duel_has_observations_of_its_own(dueling: Store) -> None:
    await fight(dueling, BASELINE)
    await dueling.close_duel("s1", 1, DuelState.EXPIRED, at=at(1), reason="too long")
    await dueling.open_duel(duel(2))
    await pin(dueling, rollout("r2", "cand_2", duel_number=2, predicted_reward=0.25))
    await earn(dueling, {1: 0.5, 2: 1.0})
    assert await dueling.duel_observations("s1", 1) == (seen(1, 0.5),)
    assert await dueling.duel_observations("s1", 2) == (seen(2, 1.0, is_challenger=True),)


async def test_a_won_duel_makes_its_challenger_the_champion(dueling: Store) -> None:
    await dueling.close_duel("s1", 1, DuelState.WON, at=at(1), reason="e-value 25")
    found = await dueling.duel("s1")
    assert found is not None
    assert (found.state, found.ended_at) == (DuelState.WON, at(1))
    session = await dueling.session("s1")
    assert (session.champion_id, session.updated_at) == ("cand_2", at(1))
    assert await event_types(dueling, since=3) == ["duel.closed", "champion.promoted"]


@pytest.mark.parametrize("state", [DuelState.LOST, DuelState.ABANDONED, DuelState.EXPIRED])
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
