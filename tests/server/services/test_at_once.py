"""Many calls at once: one pin for a rollout, and no budget overrun."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_mipro.errors import InputInvalid, Overloaded
from prefect_mipro.models.rollouts import Rollout
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.services.calls import Call
from tests.server.services.conftest import Backend

CALLS = 64
TOKENS_OF_A_CALL = 14


async def explored(backend: Backend) -> list[Rollout]:
    """The rollouts of all calls that were left to chance."""
    found = [await backend.store.rollout("s", f"r{n}") for n in range(CALLS)]
    assert None not in found
    return [rollout for rollout in found if rollout and rollout.propensity < 1]


async def run(backend: Backend, **config: Any) -> None:
    """A session with two candidates, and 64 calls at once."""
    await backend.create(selection={"strategy": "uniform"}, **config)
    await backend.sessions.add_candidate("s", instruction="Classify the query, please.")
    await asyncio.gather(*(backend.call(f"r{n}") for n in range(CALLS)))


async def test_without_budgets_all_explore(backend: Backend) -> None:
    await run(backend)
    assert len(await explored(backend)) == CALLS


async def test_no_more_rollouts_explore_than_the_budget_allows(backend: Backend) -> None:
    await run(backend, termination={"max_rollouts": 10})
    assert len(await explored(backend)) == 10
    await backend.call("later")
    assert (await backend.store.session("s")).state is SessionState.SUCCEEDED


@pytest.mark.parametrize(
    "termination",
    [{"max_tokens": 10 * TOKENS_OF_A_CALL}, {"max_cost_usd": 10 * TOKENS_OF_A_CALL / 1e6}],
)
async def test_no_more_is_spent_on_exploring_than_the_budget_allows(
    backend: Backend, termination: dict[str, float]
) -> None:
    prices = {"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": 1.0}
    await run(backend, termination=termination, policy={"max_completion_tokens": 3, **prices})
    assert 1 <= len(await explored(backend)) <= 10
    await backend.call("later")
    assert (await backend.store.session("s")).state is SessionState.SUCCEEDED


async def test_what_calls_have_reserved_is_given_back(backend: Backend) -> None:
    await run(backend, termination={"max_tokens": 1_000_000})
    live = await backend.live.of("s")
    assert (live.reserved.tokens, live.reserved.cost_usd, live.choosing) == (0, 0.0, {})
    assert (live.rollouts, live.prompt_tokens) == (CALLS, CALLS * 11)


async def test_a_call_too_many_is_refused_before_anything_is_chosen(backend: Backend) -> None:
    await backend.create()
    session = await backend.store.session("s")
    body = {"model": "m", "messages": [{"role": "user", "content": "Query: hi"}]}
    backend.journal.most_calls_in_flight = 1
    async with backend.serving.serve(session, Call(body, rollout_id="r1")):
        with pytest.raises(Overloaded) as refused:
            await backend.call("r2")
    assert refused.value.retry_after_seconds
    assert await backend.store.rollout("s", "r2") is None
    await backend.call("r2")
    assert await backend.store.rollout("s", "r2") is not None


async def test_blocks_of_rollouts_hold_when_their_calls_come_at_once(backend: Backend) -> None:
    await backend.create(online_rollouts_per_candidate=8)
    await backend.sessions.add_candidate("s", instruction="Classify the query, please.")
    await asyncio.gather(*(backend.call(f"r{n}") for n in range(CALLS)))
    found = [await backend.store.rollout("s", f"r{n}") for n in range(CALLS)]
    in_order = sorted((r for r in found if r), key=lambda rollout: rollout.position or 0)
    served = [rollout.candidate_id for rollout in in_order]
    blocks = [served[start : start + 8] for start in range(0, CALLS, 8)]
    assert all(len(set(block)) == 1 for block in blocks)


async def test_with_a_budget_of_money_a_model_without_a_price_is_refused(
    backend: Backend,
) -> None:
    prices = {"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": 1.0}
    await backend.create(termination={"max_cost_usd": 1.0}, policy=prices)
    body = {"model": "dear", "messages": [{"role": "user", "content": "Query: hi"}]}
    with pytest.raises(InputInvalid, match=r"'dear'.*prompt_learning\.prices") as refused:
        await backend.call("r", body=body)
    assert refused.value.status == 400
    await backend.call("r", body={**body, "model": "m"})
