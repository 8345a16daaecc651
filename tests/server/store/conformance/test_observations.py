"""What was seen: examples to learn from, frames, reasons, seed evals."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import CandidateNotFound, InputInvalid, SessionNotFound
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.server.store.records import SeedEvalFilter
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    pin,
    record,
    reward,
    rollout,
    trace,
)


async def run(store: Store, number: int, candidate_id: str = BASELINE, score: float = 1.0) -> None:
    """A rollout with one answered call and a reward; its example is named by the number."""
    name = f"r{number}"
    await pin(store, rollout(name, candidate_id, example_id=str(number)))
    await record(
        store,
        trace(f"trace_{number}", name, candidate_id=candidate_id),
    )
    await store.add_reward(
        reward(f"reward_{number}", name, score, feedback="good", received_at=at(number))
    )


async def test_an_example_is_what_was_asked_answered_and_rewarded(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    await record(store, trace("trace_1", input="2+2", output="4"))
    await store.add_reward(
        reward(value=0.5, example_id="17", expected="four", feedback="in words, please")
    )
    assert await store.example_traces("s1", limit=9) == (
        ExampleTrace(
            trace_id="trace_1",
            rollout_id="r1",
            candidate_id=BASELINE,
            example_id="17",
            input="2+2",
            output="4",
            reward=0.5,
            expected="four",
            feedback="in words, please",
        ),
    )


async def test_examples_are_the_newest_rewarded_ones(store: Store) -> None:
    await create(store)
    for number in (2, 1, 3):
        await run(store, number)
    await pin(store, rollout("r4"))
    await record(store, trace("trace_4", "r4"))
    found = await store.example_traces("s1", limit=2)
    assert [example.trace_id for example in found] == ["trace_3", "trace_1"]


async def test_examples_of_one_candidate_leave_out_the_others(store: Store) -> None:
    await create(store)
    await challenge(store)
    await run(store, 1)
    await run(store, 2, candidate_id="cand_2")
    found = await store.example_traces("s1", candidate_id="cand_2", limit=9)
    assert [example.trace_id for example in found] == ["trace_2"]


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [{"status": 500, "error": "broke"}],
        [{"error": "stream broke"}],
        [{"input": ""}],
        [{"output": " \n"}],
        [{}, {}],
        [{}, {"output": ""}],
        [{"output": ""}, {}],
    ],
    ids=[
        "no call",
        "failed",
        "broken",
        "no input",
        "no output",
        "two",
        "two, one without text",
        "two, the other without text",
    ],
)
async def test_rollouts_without_exactly_one_answered_call_with_text_are_no_examples(
    store: Store, calls: list[dict[str, Any]]
) -> None:
    await create(store)
    await pin(store, rollout())
    for number, values in enumerate(calls):
        await record(store, trace(f"trace_{number}", **values))
    await store.add_reward(reward())
    assert await store.example_traces("s1", limit=9) == ()


async def test_a_failed_call_before_the_answered_one_does_no_harm(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    await record(store, trace("trace_1", status=503, error="busy"))
    await record(store, trace("trace_2"))
    await store.add_reward(reward())
    (example,) = await store.example_traces("s1", limit=9)
    assert example.trace_id == "trace_2"


async def test_frames_come_newest_first(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    for number in range(3):
        await record(store, trace(f"trace_{number}", created_at=at(number)))
    await store.add_reward(reward("reward_9", received_at=at(1.5)))
    newest = await store.frames("s1", limit=3)
    assert [frame.frame_id for frame in newest] == ["frame_2", "frame_9", "frame_1"]
    assert [sensor.name for sensor in newest[1].sensors] == ["reward"]


async def test_the_last_reason_why_a_candidate_could_not_be_put_in(store: Store) -> None:
    await create(store)
    await pin(store, rollout())
    assert await store.last_unapplied("s1") is None
    for number, reason in enumerate(["first", "second", ""]):
        await record(store, trace(f"trace_{number}", unapplied_reason=reason))
    assert await store.last_unapplied("s1") == "second"


async def test_a_seed_eval_is_a_rewarded_rollout(store: Store) -> None:
    await create(store)
    await pin(store, rollout("r0"))
    await run(store, 7, score=0.5)
    (found,) = (await store.seed_evals(SeedEvalFilter(session_id="s1"), limit=9)).items
    assert (found.seed_eval_id, found.rollout_id) == ("seed_eval_7", "r7")
    assert (found.candidate_id, found.system_id, found.split) == (BASELINE, "s1", None)
    assert (found.seed, found.reward, found.avg_reward, found.success) == (7, 0.5, 0.5, True)
    assert found.created_at == at(7)
    assert found.metadata["feedback"] == "good"


@pytest.mark.parametrize("example_id", [None, "", "abc", "1.5", "1_0", "٣", "9" * 30])
async def test_an_example_without_a_number_has_no_seed(
    store: Store, example_id: str | None
) -> None:
    await create(store)
    await pin(store, rollout(example_id=example_id))
    await store.add_reward(reward())
    (found,) = (await store.seed_evals(SeedEvalFilter(session_id="s1"), limit=9)).items
    assert found.seed is None
    assert found.metadata["example_id"] == example_id


async def test_the_example_of_the_reward_stands_in_for_that_of_the_rollout(store: Store) -> None:
    await create(store)
    await pin(store, rollout("r1"))
    await pin(store, rollout("r2", example_id="5"))
    await store.add_reward(reward("reward_1", "r1", example_id="6"))
    await store.add_reward(reward("reward_2", "r2", example_id="6"))
    page = await store.seed_evals(SeedEvalFilter(session_id="s1"), limit=9)
    assert [found.seed for found in page.items] == [5, 6]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (SeedEvalFilter(), [10, 3, 2, 1]),
        (SeedEvalFilter(session_id="s1"), [3, 2, 1]),
        (SeedEvalFilter(session_id="s1", candidate_id="cand_2"), [2]),
        (SeedEvalFilter(candidate_id=BASELINE), [3, 1]),
        (SeedEvalFilter(session_id="s1", seeds=[3, 1, 99]), [3, 1]),
        (SeedEvalFilter(session_id="s1", seeds=[]), []),
        (SeedEvalFilter(session_id="s1", success=True), [2, 1]),
        (SeedEvalFilter(session_id="s1", success=False), [3]),
        (SeedEvalFilter(candidate_id=BASELINE, seeds=[1, 2], success=True), [1]),
    ],
)
async def test_seed_evals_are_listed_by_filter(
    store: Store, wanted: SeedEvalFilter, expected: list[int]
) -> None:
    await create(store)
    await create(store, "s2")
    await challenge(store)
    await run(store, 1)
    await run(store, 2, "cand_2")
    await run(store, 3, score=0.25)
    other: dict[str, Any] = {"session_id": "s2", "candidate_id": "baseline_of_s2"}
    await pin(store, rollout("r10", example_id="10", **other))
    await store.add_reward(reward("reward_10", "r10", **other))
    page = await store.seed_evals(wanted, limit=9)
    assert [found.seed for found in page.items] == expected


async def test_seed_evals_are_listed_page_by_page(store: Store) -> None:
    await create(store)
    for number in range(5):
        await run(store, number)
    wanted = SeedEvalFilter(session_id="s1")
    first = await store.seed_evals(wanted, limit=2)
    second = await store.seed_evals(wanted, limit=3, cursor=first.next_cursor)
    assert [found.seed for found in (*first.items, *second.items)] == [4, 3, 2, 1, 0]
    assert second.next_cursor is None
    with pytest.raises(InputInvalid, match="cursor"):
        await store.seed_evals(wanted, limit=2, cursor="nonsense")


async def test_numbers_that_no_database_holds_are_invalid_input(store: Store) -> None:
    await create(store)
    with pytest.raises(InputInvalid, match="number"):
        await store.seed_evals(SeedEvalFilter(session_id="s1", seeds=[10**30]), limit=9)
    with pytest.raises(InputInvalid, match="number"):
        await store.events("s1", since=10**30, limit=9)


async def test_unknown_ids_are_named(store: Store) -> None:
    calls = [
        store.example_traces("s1", limit=1),
        store.frames("s1", limit=1),
        store.last_unapplied("s1"),
        store.seed_evals(SeedEvalFilter(session_id="s1"), limit=1),
    ]
    for call in calls:
        with pytest.raises(SessionNotFound, match="'s1'"):
            await call
    await create(store)
    await create(store, "s2")
    for wanted in (
        SeedEvalFilter(candidate_id="cand_9"),
        SeedEvalFilter(session_id="s2", candidate_id=BASELINE),
    ):
        with pytest.raises(CandidateNotFound):
            await store.seed_evals(wanted, limit=1)
