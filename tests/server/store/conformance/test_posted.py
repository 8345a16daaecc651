"""Traces of calls that were made elsewhere: each is counted once, by its id."""

from __future__ import annotations

import asyncio

import pytest

from prefect_mipro.errors import CandidateNotFound, RolloutNotFound, SessionNotFound
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.rollouts import Trace
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from tests.server.store.records import BASELINE, at, create, pin, reward, rollout, trace


async def post(store: Store, of: Trace) -> Trace:
    return await store.post_trace(CallRecord(of))


async def test_it_is_counted_and_kept_as_a_proxied_call_is(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    assert await post(store, trace()) == trace()
    counted = (await store.candidate(BASELINE)).statistics
    assert (counted.calls, counted.prompt_tokens, counted.latency_seconds_sum) == (1, 7, 0.25)
    assert await store.traces_of("s1", "r1") == (trace(),)
    await store.add_reward(reward())
    (example,) = await store.example_traces("s1", limit=5)
    assert (example.trace_id, example.output) == ("trace_1", "That.")


async def test_a_latency_that_nobody_knows_stays_unknown(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    unknown = trace("trace_2", latency_seconds=None)
    for posted in (trace("trace_1"), unknown):
        assert await post(store, posted) == posted
    assert await post(store, unknown) == unknown
    counted = (await store.candidate(BASELINE)).statistics
    assert (counted.calls, counted.untimed_calls, counted.latency_seconds_sum) == (2, 1, 0.25)


async def test_the_same_again_changes_nothing_and_is_answered_as_it_was(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    first = trace(
        messages=({"role": "user", "content": [{"type": "text", "text": "ü\0"}]},),
        first_byte_seconds=0.125,
        cost_usd=0.5,
        model="claude",
        unapplied_reason="it had a prompt of its own",
    )
    await post(store, first)
    assert await post(store, trace(created_at=at(9))) == first
    assert (await store.candidate(BASELINE)).statistics.calls == 1
    assert len(await store.traces_of("s1", "r1")) == 1


async def test_an_id_is_taken_by_whatever_trace_has_it(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await pin(store, rollout())
    await pin(store, rollout(session_id="s2", candidate_id="baseline_of_s2"))
    first = await post(store, trace())
    other = trace(session_id="s2", candidate_id="baseline_of_s2")
    assert await post(store, other) == first
    assert (await store.candidate("baseline_of_s2")).statistics.calls == 0


async def test_of_those_that_race_one_is_counted(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    racers = [trace(usage=Usage(prompt_tokens=tokens)) for tokens in range(1, 13)]
    stored = await asyncio.gather(*(post(store, racer) for racer in racers))
    assert len({each.usage.prompt_tokens for each in stored}) == 1
    counted = (await store.candidate(BASELINE)).statistics
    assert (counted.calls, counted.prompt_tokens) == (1, stored[0].usage.prompt_tokens)


async def test_several_of_one_rollout_make_no_example(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    await post(store, trace("t1"))
    await post(store, trace("t2"))
    await store.add_reward(reward())
    assert (await store.candidate(BASELINE)).statistics.calls == 2
    assert await store.example_traces("s1", limit=5) == ()


async def test_a_rollout_that_nobody_pinned_has_no_traces(store: Store) -> None:
    await create(store)
    with pytest.raises(RolloutNotFound):
        await post(store, trace())
    with pytest.raises(SessionNotFound):
        await post(store, trace(session_id="s2"))
    assert await store.traces_of("s1", "r1") == ()


async def test_a_candidate_of_nobody_leaves_nothing_behind(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    with pytest.raises(CandidateNotFound):
        await post(store, trace(candidate_id="cand_of_nobody"))
    assert await post(store, trace()) == trace()


async def test_who_watches_the_session_is_told(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    told: list[str] = []
    store.watch(told.append)
    await post(store, trace())
    assert told == ["s1"]
