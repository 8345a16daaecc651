"""All sessions together: sums by state, and candidates in play."""

from __future__ import annotations

from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.records import StateTotals
from prefect_mipro.server.store.store import Store
from tests.server.store.records import at, candidate, create, instruction, pin, reward, rollout


async def test_an_empty_store_has_every_state_with_zeros(store: Store) -> None:
    overview = await store.overview()
    assert overview.by_state == dict.fromkeys(SessionState, StateTotals())
    assert (overview.active_candidates, overview.retired_candidates) == (0, 0)


async def test_sessions_rollouts_and_rewards_are_counted_under_their_sessions_state(
    store: Store,
) -> None:
    await create(store)
    await create(store, "s2")
    await store.set_state("s2", SessionState.PAUSED, at=at(1))
    await pin(store, rollout())
    await pin(store, rollout("r2"))
    await store.add_reward(reward())
    by_state = (await store.overview()).by_state
    assert by_state[SessionState.RUNNING] == StateTotals(sessions=1, rollouts=2, rewards=1)
    assert by_state[SessionState.PAUSED] == StateTotals(sessions=1)


async def test_retired_candidates_are_counted_apart(store: Store) -> None:
    await create(store)
    await store.add_candidates("s1", [instruction(2)], [candidate(2, instruction_version=2)])
    await store.retire("s1", ["cand_2"], at=at(1), reason="told to")
    overview = await store.overview()
    assert (overview.active_candidates, overview.retired_candidates) == (1, 1)
