"""Levers and candidates: numbered without gaps, retired but never lost."""

from __future__ import annotations

import asyncio

import pytest

from prefect_mipro.errors import CandidateNotFound, Conflict, SessionNotFound
from prefect_mipro.models.candidates import Statistics
from prefect_mipro.models.levers import LeverActor, LeverName, LeverProvenance
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    START,
    at,
    candidate,
    challenge,
    create,
    demonstrations,
    event_types,
    instruction,
    pin,
    record,
    reward,
    rollout,
    trace,
)


async def test_added_levers_and_candidates_read_back_as_they_were(store: Store) -> None:
    await create(store)
    told = instruction(
        2,
        "Answer briefly.",
        parent_version=1,
        provenance=LeverProvenance(
            actor=LeverActor.OPTIMIZER, operator="rewrite", source_trace_ids=("trace_1",)
        ),
    )
    shown = demonstrations(2, ("2+2", "4"), ("3+3", "6"))
    child = candidate(2, demonstrations_version=2, parent_id=BASELINE, label="brief")
    await store.add_candidates("s1", [told, shown], [child])
    assert await store.levers("s1") == (demonstrations(), shown, instruction(), told)
    assert await store.candidates("s1") == (candidate(), child)
    assert await store.candidate("cand_2") == child


async def test_a_new_candidate_has_no_statistics(store: Store) -> None:
    await create(store)
    await store.add_candidates(
        "s1", [instruction(2)], [candidate(2, statistics=Statistics(rollouts=5, rewards=5))]
    )
    assert (await store.candidate("cand_2")).statistics == Statistics()


async def test_each_new_candidate_is_an_event(store: Store) -> None:
    await create(store)
    await store.add_candidates(
        "s1", [instruction(2), instruction(3)], [candidate(2), candidate(3, created_at=at(1))]
    )
    assert await event_types(store, since=1) == ["candidate.added", "candidate.added"]
    last = (await store.events("s1", since=2, limit=1))[0]
    assert last.data["candidate_id"] == "cand_3"
    assert last.created_at == at(1)


async def test_a_number_that_is_taken_is_a_conflict_and_leaves_nothing(store: Store) -> None:
    await create(store)
    await challenge(store)
    with pytest.raises(Conflict):
        await store.add_candidates("s1", [instruction(3)], [candidate(2, candidate_id="cand_late")])
    with pytest.raises(Conflict):
        await store.add_candidates("s1", [instruction(2)], [candidate(3)])
    assert [c.number for c in await store.candidates("s1")] == [1, 2]
    assert len(await store.levers("s1")) == 3
    assert await event_types(store, since=2) == []


async def test_of_those_who_race_for_a_number_one_wins(store: Store) -> None:
    await create(store)
    results = await asyncio.gather(
        *(
            store.add_candidates(
                "s1", [instruction(2, str(racer))], [candidate(2, candidate_id=f"cand_{racer}")]
            )
            for racer in range(8)
        ),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 7 + ["NoneType"]
    winner = results.index(None)
    assert [c.candidate_id for c in await store.candidates("s1")] == [BASELINE, f"cand_{winner}"]
    assert (await store.levers("s1"))[-1].text == str(winner)


async def test_retired_candidates_stay_and_say_since_when(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.retire("s1", ["cand_2"], at=at(1), reason="behind")
    retired = await store.candidate("cand_2")
    assert (retired.active, retired.retired_at) == (False, at(1))
    assert (await store.candidate(BASELINE)).active
    assert await event_types(store, since=2) == ["candidate.retired"]


async def test_of_those_retired_the_last_hundred_and_the_newest_are_listed_too(
    store: Store,
) -> None:
    await create(store)
    numbers = range(2, 106)
    await store.add_candidates("s1", [], [candidate(n, instruction_version=1) for n in numbers])
    # The later its number the earlier it is retired; the numbers 2 and 3 stay.
    for second, number in enumerate(reversed(numbers[2:])):
        await store.retire("s1", [f"cand_{number}"], at=at(second), reason="behind")
    listed = [found.number for found in await store.candidates("s1")]
    assert listed == [1, 2, 3, *range(4, 104), 105]


async def test_totals_are_the_sums_over_all_candidates(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await challenge(store)
    assert await store.totals("s1") == Statistics()
    for number, candidate_id in enumerate([BASELINE, "cand_2", "cand_2"]):
        await pin(store, rollout(f"r{number}", candidate_id))
        await record(store, trace(f"t{number}", f"r{number}", candidate_id=candidate_id))
    await store.add_reward(reward("reward_1", "r1", 0.5))
    await store.retire("s1", ["cand_2"], at=at(1), reason="behind")
    await store.give_up("s1", after_rewards=1, pinned_before=START, at=at(1))
    assert await store.totals("s1") == Statistics(
        rollouts=3,
        rewards=1,
        missing=1,
        reward_sum=0.5,
        reward_square_sum=0.25,
        calls=3,
        prompt_tokens=21,
        completion_tokens=9,
        latency_seconds_sum=0.75,
    )


async def test_retiring_again_is_no_change(store: Store) -> None:
    await create(store)
    await challenge(store)
    await store.retire("s1", ["cand_2", "cand_2"], at=at(1), reason="behind")
    await store.retire("s1", ["cand_2"], at=at(2), reason="behind")
    assert (await store.candidate("cand_2")).retired_at == at(1)
    assert await event_types(store, since=2) == ["candidate.retired"]


async def test_candidates_of_others_are_not_retired(store: Store) -> None:
    await create(store)
    await create(store, "s2")
    await challenge(store)
    with pytest.raises(CandidateNotFound, match="baseline_of_s2"):
        await store.retire("s1", ["cand_2", "baseline_of_s2"], at=at(1), reason="behind")
    assert (await store.candidate("cand_2")).active


async def test_a_lever_version_is_retired_with_the_last_candidate_that_uses_it(
    store: Store,
) -> None:
    await create(store)
    both = [candidate(2), candidate(3, instruction_version=2, demonstrations_version=2)]
    await store.add_candidates("s1", [instruction(2), demonstrations(2, ("a", "b"))], both)

    async def retired() -> dict[tuple[LeverName, int], object]:
        return {
            (lever.lever, lever.version): lever.retired_at
            for lever in await store.levers("s1")
            if lever.retired_at
        }

    await store.retire("s1", ["cand_3"], at=at(1), reason="behind")
    assert await retired() == {(LeverName.DEMONSTRATIONS, 2): at(1)}
    await store.retire("s1", ["cand_2"], at=at(2), reason="behind")
    assert await retired() == {
        (LeverName.DEMONSTRATIONS, 2): at(1),
        (LeverName.INSTRUCTION, 2): at(2),
    }


async def test_a_lever_version_without_candidates_is_not_retired(store: Store) -> None:
    await create(store)
    await store.add_candidates("s1", [instruction(2)], [])
    assert all(lever.retired_at is None for lever in await store.levers("s1"))


async def test_unknown_ids_are_named(store: Store) -> None:
    calls = [
        store.levers("s1"),
        store.candidates("s1"),
        store.totals("s1"),
        store.add_candidates("s1", [], [candidate(2)]),
        store.retire("s1", [BASELINE], at=START, reason=""),
    ]
    for call in calls:
        with pytest.raises(SessionNotFound, match="'s1'"):
            await call
    with pytest.raises(CandidateNotFound, match="'cand_9'"):
        await store.candidate("cand_9")
