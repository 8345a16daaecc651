"""Rollouts that ran without their candidate's prompt: kept, and no evidence, in whatever order."""

from __future__ import annotations

from itertools import permutations

import pytest

from prefect_mipro.models.candidates import Statistics
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import inspected
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    duel,
    pin,
    reward,
    rollout,
    trace,
)


async def tell(
    store: Store, trace_id: str, *, applied: bool | None, rollout_id: str = "r1"
) -> None:
    """Record a call of the rollout."""
    reason = "" if applied is not False else "the messages are others"
    of = trace(trace_id, rollout_id, unapplied_reason=reason)
    await store.record_calls([CallRecord(of, applied=applied)])


async def statistics(store: Store) -> Statistics:
    return (await store.candidate(BASELINE)).statistics


async def evidence(store: Store) -> dict[str, object]:
    """Everything that a reward adds to."""
    counted = await statistics(store)
    return {
        "rewards": (counted.rewards, round(counted.reward_sum, 9)),
        "squares": round(counted.reward_square_sum, 9),
        "awaited, missing": (counted.in_flight, counted.missing),
        "duel": [(d.rollouts, d.rewards, d.reward_sum) for d in [await store.duel("s1")] if d],
        "observations": len(await store.duel_observations("s1", 1)),
        "blocks": [
            (block.rewards, round(block.reward_sum, 9), round(block.deviation_sum, 9))
            for block in (await store.learning_facts("s1")).blocks
        ],
        "example": tuple(round(n, 9) for n in await store.example_rewards("s1", "7")),
        "examples": len(await store.example_traces("s1", limit=9)),
    }


async def with_a_duel(store: Store) -> None:
    """A duel, and a rewarded rollout of the same example before it."""
    await create(store)
    await challenge(store)
    await pin(store, rollout("r0", example_id="7"))
    await store.add_reward(reward("reward_0", "r0", 0.25))
    await store.open_duel(duel())


async def test_a_reward_of_such_a_rollout_is_kept_and_counts_for_nothing(store: Store) -> None:
    await with_a_duel(store)
    before = await evidence(store)
    await pin(store, rollout(duel_number=1, predicted_reward=0.5, example_id="7", applied=False))
    await tell(store, "trace_1", applied=False)
    attached = await store.add_reward(reward())
    assert (attached.reward.candidate_id, attached.applied) == (BASELINE, False)
    assert await evidence(store) == before
    assert (await statistics(store)).unapplied_rollouts == 1
    kept = await store.rollout("s1", "r1")
    assert kept is not None
    assert kept.reward == 1.0
    assert await store.watermark("s1") == 2
    again = await store.add_reward(reward("reward_2"))
    assert (again.duplicate, again.applied) == (True, False)


# Pinned without being known, the reward, a call without the prompt, and maybe one with it.
STEPS = ("reward", "as-sent", "applied")


@pytest.mark.parametrize("order", [*permutations(STEPS), *permutations(STEPS[:2])], ids="-".join)
async def test_the_order_in_which_things_become_known_does_not_matter(
    store: Store, order: tuple[str, ...]
) -> None:
    await with_a_duel(store)
    untouched = await evidence(store)
    await pin(store, rollout(duel_number=1, predicted_reward=0.5, example_id="7"))
    for step in order:
        if step == "reward":
            await store.add_reward(reward())
        else:
            await tell(store, f"trace_{step}", applied=step == "applied")
    found = await evidence(store)
    if "applied" not in order:
        assert found == untouched
        return
    counted = await statistics(store)
    assert (counted.rewards, counted.reward_sum, counted.unapplied_rollouts) == (2, 1.25, 0)
    assert found["duel"] == [(1, 1, 1.0)]
    assert found["observations"] == 1
    assert found["example"] == pytest.approx((2, (0.25 - 1 / 2) + (1 - 1.25 / 3)))
    assert found["blocks"] != untouched["blocks"]


async def test_a_reward_that_waits_for_its_rollout_learns_it_from_the_pin(store: Store) -> None:
    await create(store)
    await store.add_reward(reward())
    await pin(store, rollout(applied=False))
    counted = await statistics(store)
    assert (counted.rollouts, counted.rewards, counted.unapplied_rollouts) == (1, 0, 1)


async def test_many_pins_at_once_tell_them_apart(store: Store) -> None:
    await create(store)
    await store.pin([rollout("r1", applied=False), rollout("r2", applied=True), rollout("r3")])
    counted = await statistics(store)
    assert (counted.rollouts, counted.unapplied_rollouts, counted.in_flight) == (3, 1, 2)


async def test_one_that_is_given_up_lacks_nothing(store: Store) -> None:
    await create(store)
    await pin(store, rollout(applied=False))
    await pin(store, rollout("r2"))
    assert await store.give_up("s1", after_rewards=99, pinned_before=at(9), at=at(9)) == 2
    assert ((await statistics(store)).missing, (await statistics(store)).in_flight) == (1, 0)
    await tell(store, "trace_2", applied=False, rollout_id="r2")
    assert ((await statistics(store)).missing, (await statistics(store)).in_flight) == (0, 0)
    await tell(store, "trace_3", applied=True, rollout_id="r2")
    assert (await statistics(store)).missing == 1
    await store.add_reward(reward(rollout_id="r2"))
    counted = await statistics(store)
    assert (counted.missing, counted.rewards, counted.unapplied_rollouts) == (0, 1, 1)


async def test_what_is_noted_again_changes_nothing(store: Store) -> None:
    await with_a_duel(store)
    await pin(store, rollout(applied=False))
    await store.add_reward(reward())
    for applied in (False, True, True, False):
        await store.note_applied("s1", "r1", applied=applied)
    counted = await statistics(store)
    assert (counted.rewards, counted.unapplied_rollouts) == (2, 0)


async def test_the_counters_stand_up_to_an_audit(store: Store, database_url: str) -> None:
    await with_a_duel(store)
    for number, applied in enumerate((False, True, None, False), start=1):
        await pin(store, rollout(f"r{number}", applied=applied))
    await store.add_reward(reward("reward_1", "r1"))
    await store.add_reward(reward("reward_2", "r2"))
    await store.give_up("s1", after_rewards=99, pinned_before=at(9), at=at(9))
    await tell(store, "trace_2", applied=False, rollout_id="r2")
    await tell(store, "trace_3", applied=False, rollout_id="r3")
    await store.close()
    async with inspected(database_url) as found:
        assert [check for check in await found.read(audit) if check.problems] == []
