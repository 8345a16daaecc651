"""Requests to forget, step by step: rows go, levers are emptied, what was counted stays counted."""

from __future__ import annotations

import pytest

from prefect_mipro.errors import Conflict
from prefect_mipro.models.levers import LeverName
from prefect_mipro.models.sessions import ForgetSubject
from prefect_mipro.server.store.records import CallRecord, ForgetOrder
from prefect_mipro.server.store.store import Store
from tests.server.store.conformance.test_retention import fill, told
from tests.server.store.conformance.test_trimming import require_whole
from tests.server.store.records import BASELINE, at, challenge, pin, rollout, trace

ORDER = ForgetOrder("forget_1", "s1", ForgetSubject.USER, "ada", requested_at=at(0))
INSTRUCTION = [(LeverName.INSTRUCTION, 2)]


async def test_an_order_takes_its_rollouts_and_its_lever_out(
    store: Store, database_url: str
) -> None:
    await fill(store)
    await challenge(store)
    await pin(store, rollout("other", "cand_2"))
    of = {"candidate_id": "cand_2"}
    await store.record_calls([CallRecord(trace("trace_other", "other", **of))])
    await store.set_champion("s1", "cand_2", at=at(1), reason="")
    before = await store.totals("s1"), (await store.learning_facts("s1")).blocks
    await store.begin_forgetting(ORDER)
    first = await store.traceable("s1", limit=3)
    assert [row.rollout_id for row in first.items] == ["other", "r0", "r1"]
    texts = await store.call_texts("s1", ["r0", "r1"], limit=99, cursor=None)
    assert [each.trace_id for each in texts.items] == ["trace_0", "trace_1"]
    withdrawal = await store.empty_levers("s1", INSTRUCTION, at=at(2), reason="asked")
    assert (withdrawal.champion_id, withdrawal.candidate_ids) == (BASELINE, ("cand_2",))
    assert (await store.standing("s1")).withdrawn_ids == {"cand_2"}
    cursor: str | None = ""
    while cursor is not None:
        cursor = await store.remove_calls(
            ORDER, ["r0", "r1"], INSTRUCTION, limit=2, cursor=cursor or None
        )
    assert await store.remove_rollouts(ORDER, ["r0", "r1"], at=at(3)) == 2
    assert await store.remove_events("s1", ["r0", "r1"], limit=99, cursor=None) is None
    assert await store.begun_forgettings()
    ended = await store.end_forgetting(ORDER, data={}, at=at(4))
    assert ended is not None
    assert (ended.rollouts, ended.calls) == (2, 2)
    assert await store.end_forgetting(ORDER, data={}, at=at(4)) is None
    assert await store.begun_forgettings() == ()
    assert (await store.totals("s1"), (await store.learning_facts("s1")).blocks) == before
    assert "trace_0" not in await told(store)
    with pytest.raises(Conflict, match="forgotten"):
        await store.set_champion("s1", "cand_2", at=at(5), reason="")
    await require_whole(database_url)
