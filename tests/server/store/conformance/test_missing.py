"""Rewards that do not come: given up oldest first, counted when they come after all."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.candidates import Statistics
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

NEVER = at(-1_000_000)


@pytest.fixture
async def served(store: Store) -> Store:
    """Six rollouts, the first pinned at second 1, the second at second 2, and so on."""
    await create(store)
    for number in range(1, 7):
        await pin(store, rollout(f"r{number}", pinned_at=at(number)))
    return store


async def earn(store: Store, *numbers: int, value: float = 1.0) -> None:
    for number in numbers:
        await store.add_reward(reward(f"reward_{number}", f"r{number}", value))


async def give_up(store: Store, after_rewards: int = 99, pinned_before: datetime = NEVER) -> int:
    return await store.give_up(
        "s1", after_rewards=after_rewards, pinned_before=pinned_before, at=at(60)
    )


async def missing(store: Store, candidate_id: str = BASELINE) -> int:
    return (await store.candidate(candidate_id)).statistics.missing


async def test_a_rollout_is_given_up_when_enough_later_ones_have_their_rewards(
    served: Store,
) -> None:
    await earn(served, 3, 5)
    assert await give_up(served, after_rewards=3) == 0
    await earn(served, 6)
    # Three came after the rollouts 1 and 2; the rollout 4 has seen two.
    assert await give_up(served, after_rewards=3) == 2
    assert await served.watermark("s1") == 3
    assert await give_up(served, after_rewards=3) == 0
    assert await give_up(served, after_rewards=2) == 1
    assert await missing(served) == 3


async def test_rewards_of_earlier_rollouts_give_none_up(served: Store) -> None:
    await earn(served, 1, 2, 3, 4, 5)
    assert await give_up(served, after_rewards=1) == 0


async def test_a_rollout_is_given_up_when_it_is_too_old(served: Store) -> None:
    await earn(served, 2)
    assert await give_up(served, pinned_before=at(1)) == 0
    assert await give_up(served, pinned_before=at(4)) == 2
    assert await served.watermark("s1") == 3
    assert await give_up(served, pinned_before=at(4)) == 0
    assert await missing(served) == 2
    assert await served.awaiting_rewards() == ("s1",)
    assert await give_up(served, pinned_before=at(9)) == 3
    assert await served.awaiting_rewards() == ()


async def test_a_time_without_a_zone_is_taken_as_utc(served: Store) -> None:
    assert await give_up(served, pinned_before=at(4).replace(tzinfo=None)) == 3


async def test_what_is_missing_counts_for_its_candidate(store: Store) -> None:
    await create(store)
    await challenge(store)
    for number, candidate_id in enumerate([BASELINE, "cand_2", "cand_2"]):
        await pin(store, rollout(f"r{number}", candidate_id))
    assert await give_up(store, pinned_before=at(1)) == 3
    assert (await store.candidate(BASELINE)).statistics == Statistics(rollouts=1, missing=1)
    statistics = (await store.candidate("cand_2")).statistics
    assert (statistics.missing, statistics.in_flight) == (2, 0)
    session = await store.session("s1")
    assert (session.rollouts, session.rewards) == (3, 0)


async def test_one_event_tells_of_all_that_were_given_up(served: Store) -> None:
    await give_up(served, pinned_before=at(5))
    await give_up(served, pinned_before=at(5))
    assert await event_types(served, since=1) == ["rollout.missing"]
    (event,) = await served.events("s1", since=1, limit=9)
    assert event.data == {"rollouts": 4, "candidates": {BASELINE: 4}}
    assert event.created_at == at(60)


async def test_a_late_reward_still_counts(served: Store) -> None:
    await give_up(served, pinned_before=at(4))
    await earn(served, 2, value=0.5)
    assert (await served.candidate(BASELINE)).statistics == Statistics(
        rollouts=6, rewards=1, missing=2, reward_sum=0.5, reward_square_sum=0.25
    )
    (block,) = (await served.learning_facts("s1")).blocks
    assert (block.first, block.last, block.rewards, block.reward_sum) == (2, 2, 1, 0.5)
    found = await served.rollout("s1", "r2")
    assert found is not None
    assert found.reward == 0.5
    assert (await served.session("s1")).rewards == 1


async def test_a_late_reward_does_not_count_for_a_duel(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await pin(store, rollout("r1", "cand_2", duel_number=1, predicted_reward=0.5))
    await give_up(store, pinned_before=at(1))
    await earn(store, 1)
    found = await store.duel("s1")
    assert found is not None
    assert (found.rollouts, found.rewards, found.reward_sum) == (1, 0, 0.0)


async def test_late_rewards_are_no_later_ones_for_those_that_wait(served: Store) -> None:
    await give_up(served, pinned_before=at(4))
    await earn(served, 1, 2, 3)
    assert await give_up(served, after_rewards=1) == 0
    await earn(served, 6)
    assert await give_up(served, after_rewards=1) == 2
    assert await missing(served) == 2


async def test_a_late_reward_finds_its_rollout_by_correlation(store: Store) -> None:
    await create(store)
    await pin(store, rollout("r1", correlation_id="mine"))
    await give_up(store, pinned_before=at(1))
    attached = await store.add_reward(reward(rollout_id=None, correlation_id="mine"))
    assert attached.reward.rollout_id == "r1"
    assert await missing(store) == 0


async def test_a_reward_that_waited_for_its_rollout_leaves_nothing_to_give_up(
    store: Store,
) -> None:
    await create(store)
    await store.add_reward(reward())
    await pin(store, rollout())
    assert await give_up(store, pinned_before=at(1)) == 0


async def test_the_watermark_is_the_end_of_all_that_is_settled(served: Store) -> None:
    assert await served.watermark("s1") == 0
    await earn(served, 2, 3, 5)
    assert await served.watermark("s1") == 0
    await earn(served, 1)
    assert await served.watermark("s1") == 3
    await give_up(served, pinned_before=at(5))
    assert await served.watermark("s1") == 5
    await earn(served, 6)
    assert await served.watermark("s1") == 6
    await earn(served, 4)
    assert await served.watermark("s1") == 6


async def test_the_watermark_of_a_session_without_rollouts_is_zero(store: Store) -> None:
    await create(store)
    assert await store.watermark("s1") == 0


async def test_more_than_a_thousand_are_given_up_at_once(store: Store) -> None:
    await create(store)
    rollouts = [rollout(f"r{number}") for number in range(1_005)]
    for start in range(0, 1_005, 64):
        await store.pin(rollouts[start : start + 64])
    await pin(store, rollout("young", pinned_at=at(9)))
    assert await give_up(store, pinned_before=at(1)) == 1_005
    assert await store.watermark("s1") == 1_005
    assert await missing(store) == 1_005


async def test_those_who_give_up_at_once_count_each_rollout_once(served: Store) -> None:
    counts = await asyncio.gather(*(give_up(served, pinned_before=at(4)) for _ in range(5)))
    assert sorted(counts) == [0, 0, 0, 0, 3]
    assert await missing(served) == 3


async def test_sessions_give_up_their_own_rollouts_only(served: Store) -> None:
    await create(served, "s2")
    other = "baseline_of_s2"
    await pin(served, rollout("r1", other, session_id="s2"))
    assert await give_up(served, pinned_before=at(60)) == 6
    assert await missing(served, other) == 0
    assert await served.watermark("s2") == 0


async def test_unknown_sessions_are_named(store: Store) -> None:
    for call in (
        store.give_up("s1", after_rewards=1, pinned_before=START, at=START),
        store.watermark("s1"),
    ):
        with pytest.raises(SessionNotFound, match="'s1'"):
            await call
