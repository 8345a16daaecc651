"""Rewards: counted once, for the right rollout, whenever they come."""

from __future__ import annotations

import asyncio

import pytest

from prefect_mipro.errors import (
    CandidateNotFound,
    RewardConflict,
    RolloutNotFound,
    SessionNotFound,
)
from prefect_mipro.models.candidates import Statistics
from prefect_mipro.models.sensors import SensorKind
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
    record,
    reward,
    rollout,
    trace,
)


async def pin_all(store: Store, *rollout_ids: str, **values: str) -> None:
    for rollout_id in rollout_ids:
        await pin(store, rollout(rollout_id, **values))


async def rewards_of(store: Store, candidate_id: str = BASELINE) -> tuple[int, float]:
    statistics = (await store.candidate(candidate_id)).statistics
    return statistics.rewards, statistics.reward_sum


async def test_a_reward_goes_to_its_rollout_and_candidate(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1")
    attached = await store.add_reward(reward(score=3.0, value=0.5))
    assert not attached.duplicate
    assert attached.reward == reward(score=3.0, value=0.5, candidate_id=BASELINE)
    found = await store.rollout("s1", "r1")
    assert found is not None
    assert found.reward == 0.5
    assert (await store.candidate(BASELINE)).statistics == Statistics(
        rollouts=1, rewards=1, reward_sum=0.5, reward_square_sum=0.25
    )


async def test_a_reward_is_told_in_two_events(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1")
    await store.add_reward(reward(value=0.5, received_at=at(5)))
    received, complete = await store.events("s1", since=1, limit=9)
    assert received.event_type == "mipro.reward.received"
    assert complete.event_type == "mipro.rollout.complete"
    assert complete.data == {"rollout_id": "r1", "candidate_id": BASELINE, "reward": 0.5}
    session = await store.session("s1")
    assert (session.version, session.updated_at) == (3, at(5))


async def test_a_reward_is_a_sensor_frame_with_the_lever_versions(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin(store, rollout(candidate_id="cand_2"))
    await store.add_reward(reward("reward_abc", score=4.0, value=0.75, trace_ref="trace_9"))
    (frame,) = await store.frames("s1", limit=9)
    assert (frame.frame_id, frame.rollout_id, frame.candidate_id) == ("frame_abc", "r1", "cand_2")
    assert frame.created_at == START
    assert frame.trace_ids == ("trace_9",)
    assert frame.lever_versions == {
        "mipro.instruction.s1": 2,
        "mipro.demonstrations.s1": 1,
        "mipro.prompt.s1": 2,
    }
    (sensor,) = frame.sensors
    assert (sensor.name, sensor.kind, sensor.value) == ("reward", SensorKind.REWARD, 0.75)


async def test_the_same_score_again_is_a_duplicate(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1")
    first = await store.add_reward(reward("reward_1"))
    again = await store.add_reward(reward("reward_2"))
    assert again.duplicate
    assert again.reward == first.reward
    assert await rewards_of(store) == (1, 1.0)
    assert await event_types(store, since=1) == ["reward.received", "rollout.complete"]


async def test_another_score_is_a_conflict(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1")
    await store.add_reward(reward(score=1.0))
    with pytest.raises(RewardConflict, match="'r1'"):
        await store.add_reward(reward("reward_2", score=0.0))
    assert await rewards_of(store) == (1, 1.0)


async def test_a_reward_for_an_unknown_rollout_waits(store: Store) -> None:
    await create(store)
    attached = await store.add_reward(reward())
    assert (attached.reward.candidate_id, attached.duplicate) == (None, False)
    assert await rewards_of(store) == (0, 0.0)
    assert await store.rollout("s1", "r1") is None
    assert await event_types(store, since=1) == ["reward.received"]


async def test_a_waiting_reward_is_counted_once_when_its_rollout_comes(store: Store) -> None:
    await create(store)
    await store.add_reward(reward("reward_1"))
    assert (await store.add_reward(reward("reward_2"))).duplicate
    with pytest.raises(RewardConflict):
        await store.add_reward(reward("reward_3", score=0.0))
    await pin_all(store, "r1")
    again = await store.add_reward(reward("reward_4"))
    assert (again.duplicate, again.reward.candidate_id) == (True, BASELINE)
    assert await rewards_of(store) == (1, 1.0)
    assert sum(block.rewards for block in (await store.learning_facts("s1")).blocks) == 1


async def test_a_reward_that_names_a_candidate_pins_an_unknown_rollout(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin_all(store, "r0")
    attached = await store.add_reward(
        reward(candidate_id="cand_2", correlation_id="c", example_id="3", received_at=at(1))
    )
    assert attached.reward.candidate_id == "cand_2"
    assert await store.rollout("s1", "r1") == rollout(
        candidate_id="cand_2",
        correlation_id="c",
        example_id="3",
        pinned_at=at(1),
        position=2,
        reward=1.0,
    )
    assert (await store.candidate("cand_2")).statistics == Statistics(
        rollouts=1, rewards=1, reward_sum=1.0, reward_square_sum=1.0
    )
    # It was not served, so what the session serves is as before.
    assert (await store.session("s1")).serving_candidate_id == BASELINE


async def test_a_reward_may_name_the_candidate_of_its_rollout(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1")
    assert not (await store.add_reward(reward(candidate_id=BASELINE))).duplicate


async def test_a_candidate_that_is_not_the_rollouts_own_is_a_conflict(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin_all(store, "r1")
    with pytest.raises(RewardConflict, match="'cand_2'"):
        await store.add_reward(reward(candidate_id="cand_2"))
    await store.add_reward(reward())
    with pytest.raises(RewardConflict, match="'cand_2'"):
        await store.add_reward(reward("reward_2", candidate_id="cand_2"))
    assert await rewards_of(store) == (1, 1.0)


@pytest.mark.parametrize("rollout_id", ["r1", "r9", None])
async def test_a_candidate_of_another_session_is_not_found(
    store: Store, rollout_id: str | None
) -> None:
    await create(store)
    await create(store, "s2")
    await pin_all(store, "r1")
    with pytest.raises(CandidateNotFound, match="baseline_of_s2"):
        await store.add_reward(reward(rollout_id=rollout_id, candidate_id="baseline_of_s2"))
    assert await event_types(store, since=1) == []


async def test_without_a_rollout_id_the_newest_unrewarded_one_of_the_correlation_gets_it(
    store: Store,
) -> None:
    await create(store)
    await pin_all(store, "r1", "r2", correlation_id="mine")
    await pin_all(store, "r3", correlation_id="other")
    got = [
        (await store.add_reward(reward(f"reward_{n}", None, correlation_id="mine"))).reward
        for n in range(2)
    ]
    assert [attached.rollout_id for attached in got] == ["r2", "r1"]
    with pytest.raises(RolloutNotFound, match="'mine'"):
        await store.add_reward(reward("reward_9", None, correlation_id="mine"))


async def test_without_any_id_the_newest_unrewarded_rollout_of_the_session_gets_it(
    store: Store,
) -> None:
    await create(store)
    await pin_all(store, "r1", correlation_id="a")
    await pin_all(store, "r2", correlation_id="b")
    await store.add_reward(reward("reward_0", "r2"))
    assert (await store.add_reward(reward("reward_1", None))).reward.rollout_id == "r1"
    with pytest.raises(RolloutNotFound, match="rollout_id"):
        await store.add_reward(reward("reward_2", None))


async def test_without_a_rollout_id_a_named_candidate_narrows_the_search(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin_all(store, "r1")
    await pin(store, rollout("r2", "cand_2"))
    attached = await store.add_reward(reward(rollout_id=None, candidate_id=BASELINE))
    assert attached.reward.rollout_id == "r1"


async def test_a_request_key_seen_before_repeats_its_answer(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1", "r2")
    first = await store.add_reward(reward("reward_1", None), request_key="k")
    again = await store.add_reward(reward("reward_2", None), request_key="k")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.reward == first.reward
    other = await store.add_reward(reward("reward_3", None), request_key="l")
    assert other.reward.rollout_id == "r1"


async def test_a_request_key_counts_within_its_session(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await pin_all(store, "r1")
    await pin(store, rollout(session_id="s2", candidate_id="baseline_of_s2"))
    await store.add_reward(reward("reward_1"), request_key="k")
    other = await store.add_reward(reward("reward_2", session_id="s2"), request_key="k")
    assert not other.duplicate


async def test_the_same_reward_many_times_at_once_counts_once(store: Store) -> None:
    await create(store)
    await pin_all(store, "r1")
    attached = await asyncio.gather(
        *(store.add_reward(reward(f"reward_{n}")) for n in range(20)),
        *(store.add_reward(reward(f"keyed_{n}"), request_key="k") for n in range(20)),
    )
    assert sum(not result.duplicate for result in attached) == 1
    assert await rewards_of(store) == (1, 1.0)


async def test_rewards_and_pins_at_once_all_find_each_other(store: Store) -> None:
    await create(store)
    await asyncio.gather(
        *(store.add_reward(reward(f"reward_{n}", f"r{n}")) for n in range(20)),
        *(pin(store, rollout(f"r{n}")) for n in range(20)),
    )
    statistics = (await store.candidate(BASELINE)).statistics
    assert (statistics.rollouts, statistics.rewards) == (20, 20)
    events = await store.events("s1", since=0, limit=100)
    assert [event.seq for event in events] == list(range(1, 42))


async def test_rewards_calls_and_pins_at_once_do_not_wait_for_each_other_in_circles(
    store: Store,
) -> None:
    await create(store)
    await pin_all(store, *(f"r{n}" for n in range(15)))
    await asyncio.gather(
        *(store.add_reward(reward(f"reward_{n}", f"r{n}")) for n in range(15)),
        *(record(store, trace(f"t{n}", f"r{n}")) for n in range(15)),
        *(pin(store, rollout(f"r{n}")) for n in range(15, 30)),
    )
    statistics = (await store.candidate(BASELINE)).statistics
    assert (statistics.rollouts, statistics.calls, statistics.rewards) == (30, 15, 15)


async def test_a_reward_without_a_session_is_refused(store: Store) -> None:
    with pytest.raises(SessionNotFound):
        await store.add_reward(reward())


async def test_a_reward_in_a_duel_counts_for_the_duel(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await pin(store, rollout("r1", "cand_2", duel_number=1, predicted_reward=0.5))
    await pin_all(store, "r2")
    await store.add_reward(reward("reward_1", "r1", value=0.25))
    await store.add_reward(reward("reward_2", "r2"))
    found = await store.duel("s1")
    assert found is not None
    assert (found.rewards, found.reward_sum) == (1, 0.25)
