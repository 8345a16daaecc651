"""Texts that were kept long enough: gone, while all numbers stay."""

from __future__ import annotations

import json

import pytest

from prefect_mipro.models.exports import Part
from prefect_mipro.models.rollouts import Trace
from prefect_mipro.server.store.records import CallRecord, SeedEvalFilter, Swept, Texts
from prefect_mipro.server.store.store import Store
from tests.server.store.records import at, create, pin, reward, rollout, trace

SAID = "a private word"


async def fill(store: Store, *, calls: int = 4, unapplied_reason: str = SAID) -> None:
    """A call each minute, each rewarded, with words wherever words can be."""
    await create(store)
    for number in range(calls):
        moment = at(60 * number)
        await pin(store, rollout(f"r{number}", pinned_at=moment))
        await store.record_calls([CallRecord(_spoken(number, unapplied_reason))])
        await store.add_reward(
            reward(
                f"reward_{number}",
                f"r{number}",
                feedback=SAID,
                expected=SAID,
                artifact={"report": SAID},
                metadata={"expected": SAID},
                received_at=moment,
            )
        )


def _spoken(number: int, unapplied_reason: str) -> Trace:
    moment = at(60 * number)
    return trace(
        f"trace_{number}",
        f"r{number}",
        messages=({"role": "user", "content": SAID},),
        response={"choices": [{"message": {"content": SAID}}]},
        input=SAID,
        output=SAID,
        unapplied_reason=unapplied_reason,
        created_at=moment,
    )


async def swept(store: Store, texts: Texts, *, before: float, limit: int = 100) -> Swept:
    """All in pieces: how many rows together, and where the last piece ended."""
    rows, cursor = 0, None
    while True:
        piece = await store.forget_texts(texts, before=at(before), limit=limit, cursor=cursor)
        rows, cursor = rows + piece.rows, piece.cursor
        if cursor is None:
            return Swept(rows, None)


async def told(store: Store) -> str:
    """All that an export holds, as text."""
    session = await store.session("s1")
    pages = [
        (await store.part(session, part, limit=100)).items for part in Part if part is not Part.END
    ]
    return json.dumps(pages)


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_old_texts_go_and_younger_ones_stay(store: Store, limit: int) -> None:
    await fill(store)
    words = (await told(store)).count(SAID)
    for texts in Texts:
        assert (await swept(store, texts, before=90, limit=limit)).rows == 2, texts
    assert (await told(store)).count(SAID) == words / 2


async def test_no_text_is_left_when_all_is_old(store: Store) -> None:
    await fill(store)
    for texts in Texts:
        await swept(store, texts, before=1e6)
    assert SAID not in await told(store)
    assert await store.last_unapplied("s1") == "forgotten"


async def test_numbers_and_beliefs_stay_as_they_were(store: Store) -> None:
    await fill(store)
    before = (await store.standing("s1"), await store.candidates("s1"))
    blocks = (await store.learning_facts("s1")).blocks
    for texts in Texts:
        await swept(store, texts, before=1e6)
    assert (await store.standing("s1"), await store.candidates("s1")) == before
    assert (await store.learning_facts("s1")).blocks == blocks
    evals = (await store.seed_evals(SeedEvalFilter(session_id="s1"), limit=9)).items
    assert [item.reward for item in evals] == [1.0] * 4


async def test_nothing_is_learned_from_what_was_forgotten(store: Store) -> None:
    await fill(store, unapplied_reason="")
    await swept(store, Texts.TRACES, before=90)
    examples = await store.example_traces("s1", limit=9)
    assert [example.rollout_id for example in examples] == ["r3", "r2"]


async def test_a_second_sweep_finds_nothing_to_do(store: Store) -> None:
    await fill(store)
    for texts in Texts:
        await swept(store, texts, before=1e6)
        assert (await swept(store, texts, before=1e6)).rows == 0, texts


async def test_the_same_reward_again_is_still_a_repeat(store: Store) -> None:
    await fill(store)
    await swept(store, Texts.REWARDS, before=1e6)
    assert (await store.add_reward(reward("again", "r0"))).duplicate
