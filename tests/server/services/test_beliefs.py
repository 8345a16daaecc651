"""Beliefs: refitted when enough has happened, at once when the candidates change."""

from __future__ import annotations

from prefect_mipro.server.services.beliefs import REFIT_REWARDS, REFIT_ROLLOUTS, Beliefs
from prefect_mipro.server.services.session_cache import PromptCache
from tests.server.services.conftest import Backend


def beliefs_of(backend: Backend) -> Beliefs:
    return Beliefs(backend.store, PromptCache(backend.store))


async def test_a_belief_serves_until_enough_rewards_have_come(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    beliefs = beliefs_of(backend)
    first = await beliefs.recent(await backend.store.session("s"))
    for i in range(REFIT_REWARDS - 1):
        await backend.call(f"r{i}")
        await backend.reward(f"r{i}")
    assert await beliefs.recent(await backend.store.session("s")) is first
    await backend.call("last")
    await backend.reward("last")
    later = await beliefs.recent(await backend.store.session("s"))
    assert later.belief.mean[0] > first.belief.mean[0]


async def test_rollouts_without_rewards_renew_the_belief_too(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    await backend.sessions.add_candidate("s", instruction="Classify the query, please.")
    beliefs = beliefs_of(backend)
    first = await beliefs.recent(await backend.store.session("s"))
    for i in range(REFIT_ROLLOUTS):
        await backend.call(f"r{i}")
    later = await beliefs.recent(await backend.store.session("s"))
    assert later is not first
    assert sum(c.statistics.in_flight for c in later.candidates) == REFIT_ROLLOUTS


async def test_rollouts_of_a_candidate_without_a_rival_change_no_belief(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    beliefs = beliefs_of(backend)
    first = await beliefs.recent(await backend.store.session("s"))
    for i in range(REFIT_ROLLOUTS):
        await backend.call(f"r{i}")
    assert await beliefs.recent(await backend.store.session("s")) is first


async def test_a_candidate_that_another_process_adds_is_seen(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    beliefs = beliefs_of(backend)
    first = await beliefs.recent(await backend.live.of("s"))
    await backend.sessions.add_candidate("s", instruction="Classify the query, please.")
    later = await beliefs.recent(await backend.live.of("s"))
    assert len(later.active) == len(first.active) + 1


async def test_a_candidate_that_a_human_adds_is_in_play_at_once(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off", selection={"strategy": "uniform"})
    await backend.call("r0")
    added = await backend.sessions.add_candidate(
        "s", instruction="You name the intent of the query in one word."
    )
    served = {(await backend.call(f"later{i}"))[0] for i in range(12)}
    assert added["candidate_id"] in served


async def test_the_same_seed_and_the_same_facts_make_the_same_plan(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    for i in range(3):
        await backend.sessions.add_candidate(
            "s", instruction=f"You are number {i} and classify queries in a word."
        )
    for i in range(24):
        await backend.call(f"r{i}")
        await backend.reward(f"r{i}", float(i % 2))
    session = await backend.store.session("s")
    plans = [(await beliefs_of(backend).recent(session)).plan for _ in range(2)]
    assert plans[0].ids == plans[1].ids
    assert plans[0].propensities.tolist() == plans[1].propensities.tolist()
    assert len(set(plans[0].propensities.tolist())) > 1


async def test_a_champion_that_was_retired_meanwhile_is_still_one_for_an_earlier_reading(
    backend: Backend,
) -> None:
    await backend.create(online_proposer_mode="off")
    for text in ("Classify the query, please.", "Classify this query well."):
        await backend.sessions.add_candidate("s", instruction=text)
    first, second = (await backend.store.candidates("s"))[1:]
    await backend.sessions.promote("s", first.candidate_id, reason="")
    before = await backend.store.session("s")
    await backend.sessions.promote("s", second.candidate_id, reason="")
    await backend.sessions.retire(first.candidate_id, reason="")
    snapshot = await beliefs_of(backend).fresh(before)
    assert first.candidate_id in snapshot.plan.of
    assert first.candidate_id not in snapshot.active_ids
