"""Reward blocks: what was earned where in the traffic, however long it grows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.candidates import DuelState, RewardBlock
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

MOST_BLOCKS = 32


async def pin_all(store: Store, positions: Iterable[int], candidate_id: str = BASELINE) -> None:
    """Rollouts that are named by their positions."""
    for position in positions:
        await pin(store, rollout(f"r{position}", candidate_id))


async def earn(store: Store, values: Mapping[int, float]) -> None:
    """Rewards by position, in the order given."""
    for position, value in values.items():
        await store.add_reward(reward(f"reward_{position}", f"r{position}", value))


def block(
    first: int, last: int, *values: float, candidate_id: str = BASELINE, epoch: int = 1
) -> RewardBlock:
    """Of rewards without examples."""
    return RewardBlock(
        epoch=epoch,
        first=first,
        last=last,
        candidate_id=candidate_id,
        rewards=len(values),
        reward_sum=sum(values),
        reward_square_sum=sum(value * value for value in values),
        deviation_sum=0.0,
    )


async def test_without_rewards_there_are_no_blocks(store: Store) -> None:
    await create(store)
    await pin_all(store, [1, 2])
    assert (await store.learning_facts("s1")).blocks == ()
    with pytest.raises(SessionNotFound, match="'s2'"):
        await store.learning_facts("s2")


async def test_a_reward_stands_where_its_rollout_was_pinned(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin_all(store, [1, 2])
    await pin_all(store, [3], "cand_2")
    await earn(store, {3: 0.25, 1: 0.5})
    assert (await store.learning_facts("s1")).blocks == (
        block(1, 1, 0.5),
        block(3, 3, 0.25, candidate_id="cand_2"),
    )


async def test_a_reward_that_pins_its_rollout_stands_at_the_end(store: Store) -> None:
    await create(store)
    await pin_all(store, [1, 2])
    await store.add_reward(reward("reward_3", "r3", 0.75, candidate_id=BASELINE))
    assert (await store.learning_facts("s1")).blocks == (block(3, 3, 0.75),)


async def test_two_blocks_become_one_when_there_would_be_more_than_32(store: Store) -> None:
    await create(store)
    await pin_all(store, range(1, MOST_BLOCKS + 1))
    await earn(store, {32: 0.5, 1: 0.25, 2: 1.0})
    assert (await store.learning_facts("s1")).blocks == (
        block(1, 1, 0.25),
        block(2, 2, 1.0),
        block(32, 32, 0.5),
    )
    await pin_all(store, [33])
    assert (await store.learning_facts("s1")).blocks == (block(1, 2, 0.25, 1.0), block(31, 32, 0.5))
    await earn(store, {33: 0.0, 31: 0.25})
    assert (await store.learning_facts("s1")).blocks == (
        block(1, 2, 0.25, 1.0),
        block(31, 32, 0.5, 0.25),
        block(33, 33, 0.0),
    )
    await pin_all(store, [34])
    assert (await store.learning_facts("s1")).blocks[-1] == block(33, 34, 0.0)


async def test_candidates_stay_apart_when_blocks_become_one(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin_all(store, [1])
    await pin_all(store, [2], "cand_2")
    await earn(store, {2: 0.5, 1: 0.25})
    await pin_all(store, range(3, MOST_BLOCKS + 2))
    assert (await store.learning_facts("s1")).blocks == (
        block(1, 2, 0.25),
        block(1, 2, 0.5, candidate_id="cand_2"),
    )


async def test_sparse_rewards_in_any_order_end_up_where_they_belong(store: Store) -> None:
    await create(store)
    count = 4 * MOST_BLOCKS + 12
    # Every third rollout is rewarded: some at once, the others long after, backwards.
    at_once = {position: position % 8 / 8 for position in range(1, count + 1, 6)}
    later = {position: position % 8 / 8 for position in range(4, count + 1, 6)}
    for position in range(1, count + 1):
        await pin_all(store, [position])
        await earn(store, {p: value for p, value in at_once.items() if p == position})
    await earn(store, dict(reversed(later.items())))
    length = 8
    rewarded = at_once | later
    expected = []
    for first in range(1, count + 1, length):
        values = [rewarded[p] for p in range(first, first + length) if p in rewarded]
        expected.append(block(first, min(first + length - 1, count), *values))
    found = (await store.learning_facts("s1")).blocks
    assert found == tuple(expected)
    assert MOST_BLOCKS / 2 < len(found) <= MOST_BLOCKS


async def test_a_new_epoch_has_blocks_of_its_own(store: Store) -> None:
    await create(store)
    await pin_all(store, [1, 2])
    await earn(store, {1: 0.25})
    begun = await store.begin_epoch("s1", at=at(1), reason="another model")
    assert (begun.epoch, begun.updated_at) == (2, at(1))
    assert await event_types(store, since=3) == ["epoch.begun"]
    await pin_all(store, [3, 4])
    await earn(store, {4: 0.5, 3: 0.75})
    assert (await store.learning_facts("s1")).blocks == (
        block(1, 1, 0.25),
        block(3, 3, 0.75, epoch=2),
        block(4, 4, 0.5, epoch=2),
    )


async def test_a_reward_belongs_to_the_epoch_of_its_pin(store: Store) -> None:
    await create(store)
    await pin_all(store, range(1, MOST_BLOCKS + 4))
    await earn(store, {3: 0.5})
    await store.begin_epoch("s1", at=at(1), reason="another model")
    await pin_all(store, [36])
    await store.begin_epoch("s1", at=at(2), reason="and another")
    await pin_all(store, range(37, 37 + MOST_BLOCKS))
    await earn(store, {4: 1.0, 35: 0.25, 37: 0.75, 36: 0.0})
    assert (await store.learning_facts("s1")).blocks == (
        block(3, 4, 0.5, 1.0),
        block(35, 35, 0.25),
        block(36, 36, 0.0, epoch=2),
        block(37, 37, 0.75, epoch=3),
    )


async def test_blocks_of_an_epoch_that_has_ended_stay_as_long_as_they_were(store: Store) -> None:
    await create(store)
    await pin_all(store, [1, 2])
    await earn(store, {1: 0.5, 2: 0.25})
    await store.begin_epoch("s1", at=at(1), reason="another model")
    await pin_all(store, range(3, MOST_BLOCKS + 4))
    await earn(store, {3: 1.0, 4: 0.0})
    assert (await store.learning_facts("s1")).blocks == (
        block(1, 1, 0.5),
        block(2, 2, 0.25),
        block(3, 4, 1.0, 0.0, epoch=2),
    )


async def test_an_epoch_may_end_before_it_had_a_rollout(store: Store) -> None:
    await create(store)
    await store.begin_epoch("s1", at=at(1), reason="another model")
    begun = await store.begin_epoch("s1", at=at(2), reason="and another")
    assert begun.epoch == 3
    await pin_all(store, [1])
    await earn(store, {1: 0.5})
    assert (await store.learning_facts("s1")).blocks == (block(1, 1, 0.5, epoch=3),)


async def test_statistics_go_on_over_epochs(store: Store) -> None:
    await create(store)
    await pin_all(store, [1])
    await earn(store, {1: 0.5})
    await store.begin_epoch("s1", at=at(1), reason="another model")
    await pin_all(store, [2])
    await earn(store, {2: 0.25})
    statistics = (await store.candidate(BASELINE)).statistics
    assert (statistics.rollouts, statistics.rewards, statistics.reward_sum) == (2, 2, 0.75)


async def test_a_new_epoch_abandons_the_running_duel(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    begun = await store.begin_epoch("s1", at=at(1), reason="another model")
    found = await store.duel("s1")
    assert found is not None
    assert (found.state, found.ended_at) == (DuelState.ABANDONED, at(1))
    assert begun.champion_id == BASELINE
    assert await event_types(store, since=3) == ["duel.closed", "epoch.begun"]


async def test_only_sessions_that_exist_begin_an_epoch(store: Store) -> None:
    with pytest.raises(SessionNotFound, match="'s1'"):
        await store.begin_epoch("s1", at=START, reason="another model")
