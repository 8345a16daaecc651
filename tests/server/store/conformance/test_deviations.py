"""Examples: how much more than others each one earns."""

from __future__ import annotations

import pytest

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.server.store.store import Store
from tests.server.store.records import at, challenge, create, pin, reward, rollout


async def run(store: Store, number: int, value: float, example_id: str | None) -> None:
    """A rollout of the baseline with its reward."""
    await pin(store, rollout(f"r{number}", example_id=example_id))
    await store.add_reward(reward(f"reward_{number}", f"r{number}", value))


async def deviation_sum(store: Store) -> float:
    return sum(block.deviation_sum for block in (await store.learning_facts("s1")).blocks)


async def test_an_example_without_rewards_is_unknown(store: Store) -> None:
    await create(store)
    assert await store.example_rewards("s1", "7") == (0, 0.0)
    await pin(store, rollout(example_id="7"))
    assert await store.example_rewards("s1", "7") == (0, 0.0)
    with pytest.raises(SessionNotFound, match="'s2'"):
        await store.example_rewards("s2", "7")


async def test_a_deviation_is_a_reward_less_the_mean_of_its_candidate_before_it(
    store: Store,
) -> None:
    await create(store)
    # A candidate without rewards is taken to earn 1/2: as if it had earned 0 and 1 once each.
    await run(store, 1, 1.0, "7")
    assert await store.example_rewards("s1", "7") == pytest.approx((1, 1 - 1 / 2))
    await run(store, 2, 0.0, "8")
    assert await store.example_rewards("s1", "8") == pytest.approx((1, 0 - 2 / 3))
    await run(store, 3, 0.5, "7")
    assert await store.example_rewards("s1", "7") == pytest.approx((2, 1 / 2 + (1 / 2 - 2 / 4)))
    await run(store, 4, 0.25, "7")
    assert await store.example_rewards("s1", "7") == pytest.approx((3, 1 / 2 + 0.25 - 2.5 / 5))


async def test_each_candidate_has_a_mean_of_its_own(store: Store) -> None:
    await create(store)
    await challenge(store)
    await run(store, 1, 1.0, None)
    await pin(store, rollout("r2", "cand_2", example_id="7"))
    await store.add_reward(reward("reward_2", "r2", 0.75))
    assert await store.example_rewards("s1", "7") == pytest.approx((1, 0.75 - 1 / 2))


async def test_blocks_add_up_what_was_expected_before_each_reward(store: Store) -> None:
    await create(store)
    await run(store, 1, 1.0, "7")
    assert await deviation_sum(store) == 0.0
    await run(store, 2, 1.0, "7")
    first = expected_deviation(1, 1 / 2)
    assert await deviation_sum(store) == pytest.approx(first)
    await run(store, 3, 0.0, "8")
    assert await deviation_sum(store) == pytest.approx(first)
    await run(store, 4, 0.0, "7")
    second = expected_deviation(2, 1 / 2 + (1 - 2 / 3))
    assert await deviation_sum(store) == pytest.approx(first + second)
    blocks = (await store.learning_facts("s1")).blocks
    assert [block.deviation_sum for block in blocks] == pytest.approx([0.0, first, 0.0, second])


async def test_without_an_example_nothing_is_expected(store: Store) -> None:
    await create(store)
    for number in range(3):
        await run(store, number, 1.0, None)
    assert await deviation_sum(store) == 0.0


async def test_the_example_of_the_reward_stands_in_where_the_rollout_has_none(
    store: Store,
) -> None:
    await create(store)
    await pin(store, rollout("r1"))
    await store.add_reward(reward("reward_1", "r1", 1.0, example_id="7"))
    await pin(store, rollout("r2", example_id="8"))
    await store.add_reward(reward("reward_2", "r2", 1.0, example_id="7"))
    assert [(await store.example_rewards("s1", name))[0] for name in "78"] == [1, 1]


async def test_a_late_reward_counts_for_its_example(store: Store) -> None:
    await create(store)
    await pin(store, rollout(example_id="7"))
    await store.give_up("s1", after_rewards=9, pinned_before=at(1), at=at(2))
    await store.add_reward(reward(value=1.0))
    assert await store.example_rewards("s1", "7") == pytest.approx((1, 1 / 2))


async def test_examples_are_known_over_epochs_and_within_their_session(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await run(store, 1, 1.0, "7")
    await store.begin_epoch("s1", at=at(1), reason="another model")
    await run(store, 2, 1.0, "7")
    assert (await store.example_rewards("s1", "7"))[0] == 2
    assert await store.example_rewards("s2", "7") == (0, 0.0)
    epochs = [block.deviation_sum for block in (await store.learning_facts("s1")).blocks]
    assert epochs == pytest.approx([0.0, expected_deviation(1, 1 / 2)])


@pytest.mark.parametrize("example_id", ["", "é", "a\0b", "\ud800", "7" * 5_000, "x" * 20_000])
async def test_any_text_names_an_example(store: Store, example_id: str) -> None:
    await create(store)
    await run(store, 1, 1.0, example_id)
    await run(store, 2, 1.0, example_id)
    assert (await store.example_rewards("s1", example_id))[0] == 2
    assert (await store.example_rewards("s1", f"{example_id}!"))[0] == 0
