"""Rollouts: pinned once and for all, their calls counted."""

from __future__ import annotations

import asyncio

import pytest

from prefect_mipro.errors import CandidateNotFound, Conflict, RolloutNotFound, SessionNotFound
from prefect_mipro.models.candidates import Statistics
from prefect_mipro.models.chat import Usage
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
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


async def test_a_pin_reads_back_as_it_was(store: Store) -> None:
    await create(store)
    wanted = rollout(correlation_id="c", example_id="7", propensity=0.25)
    pinned = await pin(store, wanted)
    assert pinned == wanted.model_copy(update={"position": 1})
    assert await store.rollout("s1", "r1") == pinned


async def test_a_rollout_that_nobody_pinned_is_none(store: Store) -> None:
    await create(store)
    assert await store.rollout("s1", "r1") is None
    with pytest.raises(SessionNotFound):
        await store.rollout("s2", "r1")


async def test_the_first_pin_stays(store: Store) -> None:
    await create(store)
    await challenge(store)
    first = await pin(store, rollout())
    assert await pin(store, rollout(candidate_id="cand_2", pinned_at=at(1))) == first
    assert (await store.candidate(BASELINE)).statistics == Statistics(rollouts=1)
    assert (await store.candidate("cand_2")).statistics == Statistics()


async def test_of_those_who_race_to_pin_all_get_the_same_rollout(store: Store) -> None:
    await create(store)
    await challenge(store)
    racers = [BASELINE, "cand_2"] * 12
    pinned = await asyncio.gather(
        *(pin(store, rollout(candidate_id=candidate_id)) for candidate_id in racers)
    )
    assert len(set(pinned)) == 1
    candidates = await store.candidates("s1")
    assert sum(c.statistics.rollouts for c in candidates) == 1
    assert (await store.session("s1")).serving_rollouts == 1


async def test_the_same_rollout_id_is_another_rollout_in_another_session(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await pin(store, rollout())
    other = rollout(session_id="s2", candidate_id="baseline_of_s2")
    assert await pin(store, other) == other.model_copy(update={"position": 1})


async def test_the_session_remembers_whom_it_serves_and_how_often_in_a_row(store: Store) -> None:
    await create(store)
    await challenge(store)

    async def serve(rollout_id: str, candidate_id: str) -> tuple[str | None, int]:
        await pin(store, rollout(rollout_id, candidate_id))
        session = await store.session("s1")
        return session.serving_candidate_id, session.serving_rollouts

    assert await serve("r1", BASELINE) == (BASELINE, 1)
    assert await serve("r2", BASELINE) == (BASELINE, 2)
    assert await serve("r3", "cand_2") == ("cand_2", 1)
    assert await serve("r3", "cand_2") == ("cand_2", 1)


async def test_only_candidates_of_the_session_are_pinned(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    for candidate_id in ("baseline_of_s2", "cand_9"):
        with pytest.raises(CandidateNotFound, match=candidate_id):
            await pin(store, rollout(candidate_id=candidate_id))
    with pytest.raises(SessionNotFound):
        await pin(store, rollout(session_id="s3"))
    assert await store.rollout("s1", "r1") is None


async def test_a_pin_in_a_duel_counts_for_the_duel(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await pin(store, rollout("r1", "cand_2", duel_number=1, predicted_reward=0.5))
    await pin(store, rollout("r1", "cand_2", duel_number=1, predicted_reward=0.5))
    await pin(store, rollout("r2"))
    found = await store.duel("s1")
    assert found is not None
    assert found.rollouts == 1


async def test_a_pin_attaches_the_reward_that_waits_for_it(store: Store) -> None:
    await create(store)
    await store.add_reward(reward(score=2.0, value=0.75, example_id="7"))
    pinned = await pin(store, rollout())
    assert (pinned.reward, pinned.example_id) == (0.75, "7")
    assert await store.rollout("s1", "r1") == pinned
    statistics = (await store.candidate(BASELINE)).statistics
    assert (statistics.rollouts, statistics.rewards, statistics.reward_sum) == (1, 1, 0.75)
    assert await event_types(store, since=1) == ["reward.received", "rollout.complete"]


async def test_pins_and_calls_leave_the_event_feed_alone(store: Store) -> None:
    created = await create(store)
    await pin(store, rollout())
    await record(store, trace())
    assert await event_types(store, since=1) == []
    assert (await store.session("s1")).version == created.version


async def test_calls_add_up_in_the_statistics(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    await record(store, trace("t1"))
    await record(store, trace("t2", unapplied_reason="no system message"))
    await record(store, trace("t3", status=503, response=None, output="", usage=Usage()))
    await record(store, trace("t4", error="stream broke"))
    assert (await store.candidate(BASELINE)).statistics == Statistics(
        rollouts=1,
        calls=4,
        failed_calls=2,
        unapplied_calls=1,
        prompt_tokens=21,
        completion_tokens=9,
        latency_seconds_sum=1.0,
    )


async def test_calls_at_once_are_all_counted(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    await asyncio.gather(*(record(store, trace(f"t{n}")) for n in range(30)))
    assert (await store.candidate(BASELINE)).statistics.calls == 30
    assert len(await store.traces_of("s1", "r1")) == 30


async def test_a_call_is_recorded_once(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    await record(store, trace())
    with pytest.raises(Conflict):
        await record(store, trace())
    assert (await store.candidate(BASELINE)).statistics.calls == 1
    assert len(await store.traces_of("s1", "r1")) == 1


@pytest.mark.parametrize("status", [200, 500])
async def test_a_call_belongs_to_a_pinned_rollout(store: Store, status: int) -> None:
    with pytest.raises(SessionNotFound):
        await record(store, trace(status=status))
    await create(store)
    with pytest.raises(RolloutNotFound, match="'r1'"):
        await record(store, trace(status=status))
    await pin(store, rollout())
    with pytest.raises(CandidateNotFound, match="'cand_9'"):
        await record(store, trace(status=status, candidate_id="cand_9"))
    assert await store.traces_of("s1", "r1") == ()
