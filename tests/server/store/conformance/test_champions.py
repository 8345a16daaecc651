"""Champions: made by hand or by a duel, never without being in play."""

from __future__ import annotations

import pytest

from prefect_mipro.errors import CandidateNotFound
from prefect_mipro.models.candidates import DuelState
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    duel,
    event_types,
    pin,
    rollout,
)


async def test_the_champion_is_a_candidate_of_the_session(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await challenge(store)
    promoted = await store.set_champion("s1", "cand_2", at=at(1), reason="asked")
    assert promoted.champion_id == "cand_2"
    for other in ("baseline_of_s2", "cand_9"):
        with pytest.raises(CandidateNotFound, match=other):
            await store.set_champion("s1", other, at=at(2), reason="asked")
    assert await store.session("s1") == promoted


async def test_the_present_champion_again_is_no_change(store: Store) -> None:
    created = await create(store)
    assert await store.set_champion("s1", BASELINE, at=at(1), reason="asked") == created


async def test_a_promotion_by_hand_is_remembered_but_counts_as_no_proof(store: Store) -> None:
    await create(store)
    await challenge(store)
    for number in range(3):
        await pin(store, rollout(f"r{number}"))
    promoted = await store.set_champion("s1", "cand_2", at=at(1), reason="asked")
    assert (promoted.promotions, promoted.promoted_at) == (0, 3)
    assert await event_types(store, since=2) == ["champion.promoted"]


async def test_a_won_duel_counts_as_a_promotion(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    for number in range(3):
        await pin(store, rollout(f"r{number}"))
    await store.close_duel("s1", 1, DuelState.WON, at=at(1), reason="e-value 25")
    promoted = await store.session("s1")
    assert (promoted.champion_id, promoted.promotions, promoted.promoted_at) == ("cand_2", 1, 3)


async def test_a_session_that_has_ended_may_be_given_another_champion(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.set_state("s1", SessionState.SUCCEEDED, at=at(1))
    promoted = await store.set_champion("s1", "cand_2", at=at(2), reason="asked")
    assert (promoted.champion_id, promoted.state) == ("cand_2", SessionState.SUCCEEDED)


async def test_a_retired_champion_is_in_play_again(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.retire("s1", ["cand_2"], at=at(1), reason="behind")
    await store.set_champion("s1", "cand_2", at=at(2), reason="asked")
    assert (await store.candidate("cand_2")).active
    assert await event_types(store, since=3) == ["candidate.reactivated", "champion.promoted"]


async def test_a_challenger_that_was_retired_meanwhile_is_in_play_when_it_wins(
    store: Store,
) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await store.retire("s1", ["cand_2"], at=at(1), reason="behind")
    await store.close_duel("s1", 1, DuelState.WON, at=at(2), reason="e-value 25")
    assert (await store.candidate("cand_2")).active


@pytest.mark.parametrize("chosen", ["cand_2", "cand_3"], ids=["challenger", "another"])
async def test_a_new_champion_abandons_the_running_duel(store: Store, chosen: str) -> None:
    await create(store)
    await challenge(store)
    await challenge(store, 3)
    await store.open_duel(duel())
    promoted = await store.set_champion("s1", chosen, at=at(1), reason="asked")
    found = await store.duel("s1")
    assert found is not None
    assert (found.state, found.ended_at) == (DuelState.ABANDONED, at(1))
    assert (promoted.champion_id, promoted.promotions) == (chosen, 0)
    assert await event_types(store, since=4) == ["duel.closed", "champion.promoted"]


async def test_the_present_champion_again_leaves_its_duel(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await store.set_champion("s1", BASELINE, at=at(1), reason="asked")
    assert await store.duel("s1") == duel()


async def test_a_duel_that_has_ended_stays_when_the_champion_changes(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await store.close_duel("s1", 1, DuelState.LOST, at=at(1), reason="e-value 25 against it")
    await store.set_champion("s1", "cand_2", at=at(2), reason="asked")
    found = await store.duel("s1")
    assert found is not None
    assert (found.state, found.ended_at) == (DuelState.LOST, at(1))
