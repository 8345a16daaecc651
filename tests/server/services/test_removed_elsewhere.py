"""Rollouts that another server has removed from the database that two servers share."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import pytest

from prefect_mipro.models.exports import Part
from prefect_mipro.models.rollouts import Rollout
from prefect_mipro.models.sessions import ForgetRequest
from prefect_mipro.server.services.calls import Call
from prefect_mipro.server.services.privacy import Retention
from prefect_mipro.server.store.audit import audit
from tests.server.services.conftest import Backend, running

DAYS = 90
DAY_SECONDS = 86_400

Pair = tuple[Backend, Backend]


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[Pair]:
    """Two servers. The second one remembers the rewarded rollout `r`, which it has answered."""
    async with running(postgres_url, name="a") as first, running(postgres_url, name="b") as second:
        await first.create(selection={"strategy": "fixed"})
        await second.call("r", "Query: the old one", correlation_id="conversation")
        await second.journal.flush()
        await second.reward("r")
        yield first, second
        faults = [check for check in await first.store.database.read(audit) if check.problems]
        assert faults == []


async def removed_by(first: Backend, second: Backend) -> None:
    """All that is there by now is removed by the first server because of its age."""
    for server in (first, second):
        server.pass_time((DAYS + 1) * DAY_SECONDS)
    retention = Retention(
        first.store,
        first.live,
        rollouts_days=DAYS,
        clock=lambda: first.now[0],
        pause_seconds=0,
    )
    await retention.sweep()
    assert await first.store.rollout("s", "r") is None


async def inputs(server: Backend) -> list[str]:
    """What the recorded calls were asked."""
    await server.journal.flush()
    session = await server.store.session("s")
    page = await server.store.part(session, Part.TRACE, limit=10)
    return [row["input"] for row in page.items]


async def counts_reward(server: Backend) -> bool:
    receipt = await server.reward("r")
    return receipt.attached and not receipt.duplicate


async def pinned(server: Backend) -> Rollout:
    found = await server.store.rollout("s", "r")
    assert found is not None
    return found


async def test_a_late_call_begins_another_rollout_before_its_server_knows_of_the_removal(
    pair: Pair,
) -> None:
    first, second = pair
    await removed_by(first, second)
    candidate_id, _ = await second.call("r", "Query: the new one", correlation_id="another")
    assert await inputs(second) == ["Query: the new one"]
    rollout = await pinned(first)
    assert (rollout.candidate_id, rollout.correlation_id) == (candidate_id, "another")
    assert (rollout.pinned_at, rollout.applied) == (second.now[0], True)
    assert await counts_reward(first)
    assert (await first.store.session("s")).rewards == 2


async def test_several_late_calls_belong_to_one_rollout(pair: Pair) -> None:
    first, second = pair
    await removed_by(first, second)
    for text in ("one", "two", "three"):
        await second.call("r", text)
    assert len(await inputs(second)) == 3
    assert (await first.store.session("s")).rollouts == 2


async def test_a_server_that_knows_of_the_removal_chooses_again_and_pins_first(
    pair: Pair,
) -> None:
    first, second = pair
    await removed_by(first, second)
    added = await first.sessions.add_candidate("s", instruction="Name the intent.")
    await first.sessions.promote("s", added["candidate_id"], reason="it is better")
    second.live.forget("s")
    candidate_id, _ = await second.call("r")
    assert candidate_id == added["candidate_id"]
    assert (await pinned(first)).candidate_id == candidate_id
    assert await counts_reward(first)


async def test_a_lease_begins_another_rollout_at_once(pair: Pair) -> None:
    first, second = pair
    await removed_by(first, second)
    candidate = await second.serving.assign(await second.store.session("s"), rollout_id="r")
    assert (await pinned(first)).candidate_id == candidate.candidate_id


async def test_what_is_called_after_a_request_to_forget_is_kept_and_what_was_under_way_is_not(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pair
    session = await second.store.session("s")
    messages = [{"role": "user", "content": "Query: under way"}]
    under_way = Call(body={"model": "m", "messages": messages}, rollout_id="r")
    async with second.serving.serve(session, under_way) as served:
        await first.forgetting.forget("s", ForgetRequest(rollout_id="r"))
        live = await second.live.of("s")
        assert second.live.pinned(live.session, "r") is None
        assert json.loads(await served.read())
    with caplog.at_level(logging.INFO):
        assert await inputs(second) == []
    assert "recordings_of_removed_rollout" in caplog.messages
    assert await first.store.rollout("s", "r") is None
    second.pass_time(1)
    await second.call("r", "Query: afterwards")
    assert await counts_reward(first)
    assert await inputs(second) == ["Query: afterwards"]
