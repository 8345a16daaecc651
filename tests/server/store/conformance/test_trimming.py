"""Rows that were kept long enough: gone, while all that was counted of them stays counted."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import RewardConflict
from prefect_mipro.models.exports import Part
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationSource,
    DemonstrationsValue,
    LeverName,
)
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import inspected
from prefect_mipro.server.store.records import CallRecord, SeedEvalFilter
from prefect_mipro.server.store.store import Store
from tests.server.store.conformance.test_failures import fail, failure
from tests.server.store.conformance.test_retention import fill
from tests.server.store.records import (
    BASELINE,
    at,
    candidate,
    challenge,
    create,
    demonstrations,
    duel,
    pin,
    reward,
    rollout,
    trace,
)

LONG_AFTER = 1e6
# What a rollout of `fill` leaves: itself with its reward, its call, two events.
ROWS_OF_A_ROLLOUT = 4


async def removed(
    store: Store, *, before: float, limit: int = 100, session_id: str = "s1"
) -> tuple[int, list[str]]:
    """All in pieces: how many rows, and which rollouts."""
    rows, rollout_ids = 0, list[str]()
    while True:
        piece = await store.remove_old(
            session_id, before=at(before), limit=limit, at=at(LONG_AFTER)
        )
        if not piece.rows:
            return rows, rollout_ids
        assert piece.rows <= limit
        rows += piece.rows
        rollout_ids += piece.rollout_ids


async def require_whole(database_url: str) -> None:
    async with inspected(database_url) as database:
        assert [check for check in await database.read(audit) if check.problems] == []


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_old_rows_go_and_younger_ones_stay(
    store: Store, database_url: str, limit: int
) -> None:
    await fill(store)
    rows, rollout_ids = await removed(store, before=90, limit=limit)
    assert rollout_ids == ["r0", "r1"]
    assert rows == 2 * ROWS_OF_A_ROLLOUT + 1  # and the session's creation
    session = await store.session("s1")
    assert (session.rollouts, session.rewards, session.removed_rollouts) == (4, 4, 2)
    for part, left in {Part.ROLLOUT: 2, Part.REWARD: 2, Part.TRACE: 2, Part.EVENT: 4}.items():
        assert len((await store.part(session, part, limit=99)).items) == left, part
    assert await store.rollout("s1", "r1") is None
    assert await store.rollout("s1", "r2")
    await require_whole(database_url)
    assert await removed(store, before=90) == (0, [])


async def test_a_clock_that_was_wrong_for_a_while_keeps_nothing_for_good(
    store: Store, database_url: str
) -> None:
    await create(store)
    for number, moment in enumerate((0, LONG_AFTER, 1)):
        name, created = f"r{number}", {"created_at": at(moment)}
        await pin(store, rollout(name, pinned_at=at(moment)))
        await store.record_calls(
            [
                CallRecord(
                    trace(f"trace_{number}", name, **created),
                )
            ]
        )
        await store.add_reward(reward(f"reward_{number}", name, received_at=at(moment)))
    assert (await removed(store, before=9))[1] == ["r0", "r2"]
    session = await store.session("s1")
    for part, left in {Part.ROLLOUT: 1, Part.TRACE: 1, Part.EVENT: 2}.items():
        assert len((await store.part(session, part, limit=99)).items) == left, part
    await require_whole(database_url)


async def test_what_was_counted_stays_counted(store: Store) -> None:
    await fill(store)
    before = (
        await store.candidates("s1"),
        (await store.learning_facts("s1")).blocks,
        await store.totals("s1"),
    )
    await removed(store, before=LONG_AFTER)
    after = (
        await store.candidates("s1"),
        (await store.learning_facts("s1")).blocks,
        await store.totals("s1"),
    )
    assert after == before
    assert await store.watermark("s1") == 4
    assert (await store.seed_evals(SeedEvalFilter(session_id="s1"), limit=9)).items == ()
    assert await store.example_traces("s1", limit=9) == ()
    assert await store.events("s1", since=0, limit=9) == ()


async def test_a_session_goes_on_where_it_stood(store: Store, database_url: str) -> None:
    await fill(store)
    await removed(store, before=LONG_AFTER)
    pinned = await pin(store, rollout("next", pinned_at=at(LONG_AFTER)))
    assert pinned.position == 5
    assert not (await store.add_reward(reward("reward_next", "next"))).duplicate
    session = await store.session("s1")
    assert (session.rollouts, session.rewards, session.version) == (5, 5, 11)
    await require_whole(database_url)


async def test_a_reward_that_had_come_does_not_count_again(store: Store, database_url: str) -> None:
    await fill(store)
    before = await store.candidates("s1")
    await removed(store, before=LONG_AFTER)
    for candidate_id in (None, BASELINE):
        again = await store.add_reward(reward("again", "r1", 0.5, candidate_id=candidate_id))
        assert (again.duplicate, again.reward.candidate_id) == (True, BASELINE)
    await challenge(store)
    with pytest.raises(RewardConflict, match="ran with 'baseline_1'"):
        await store.add_reward(reward("again", "r1", candidate_id="cand_2"))
    assert (await store.candidates("s1"))[:1] == before
    await require_whole(database_url)


async def test_a_reward_that_never_came_is_missing_and_comes_too_late(
    store: Store, database_url: str
) -> None:
    await create(store)
    await pin(store, rollout("given up"))
    await store.give_up("s1", after_rewards=99, pinned_before=at(1), at=at(1))
    await pin(store, rollout("awaited"))
    await pin(store, rollout("young", pinned_at=at(9)))
    await store.add_reward(reward("reward_1", "young"))
    assert (await removed(store, before=5))[1] == ["given up", "awaited"]
    statistics = (await store.candidate(BASELINE)).statistics
    assert (statistics.rollouts, statistics.rewards, statistics.missing) == (3, 1, 2)
    for candidate_id in (None, BASELINE):
        with pytest.raises(RewardConflict, match=r"removed without a reward.*comes too late"):
            await store.add_reward(reward("late", "awaited", candidate_id=candidate_id))
    assert await store.watermark("s1") == 3
    await require_whole(database_url)


async def test_an_id_that_is_used_again_is_another_rollout(store: Store, database_url: str) -> None:
    await fill(store)
    await removed(store, before=LONG_AFTER)
    await pin(store, rollout("r1", pinned_at=at(LONG_AFTER)))
    assert not (await store.add_reward(reward("second", "r1"))).duplicate
    assert await removed(store, before=LONG_AFTER + 1) != (0, [])
    assert (await store.add_reward(reward("third", "r1"))).duplicate
    assert (await store.session("s1")).removed_rollouts == 5
    await require_whole(database_url)


async def test_the_newest_duel_keeps_its_evidence(store: Store, database_url: str) -> None:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    dueled: dict[str, Any] = {"duel_number": 1, "predicted_reward": 0.5}
    await pin(store, rollout("r1", **dueled))
    await pin(store, rollout("r2"))
    for name in ("r1", "r2"):
        await store.add_reward(reward(f"reward_{name}", name))
    evidence = await store.duel_observations("s1", 1)
    assert (await removed(store, before=LONG_AFTER))[1] == ["r2"]
    assert await store.duel_observations("s1", 1) == evidence
    await store.set_champion("s1", "cand_2", at=at(9), reason="asked")
    await store.open_duel(duel(2))
    assert (await removed(store, before=LONG_AFTER))[1] == ["r1"]
    await require_whole(database_url)


async def test_failures_of_the_present_epoch_stay_evidence(store: Store, database_url: str) -> None:
    await create(store)
    await challenge(store)
    await pin(store, rollout("r1", "cand_2"))
    await fail(store, failure(), "r1")
    before = (await store.learning_facts("s1")).failures
    assert before.newest
    assert (await removed(store, before=LONG_AFTER))[1] == []
    assert (await store.learning_facts("s1")).failures == before
    await store.begin_epoch("s1", at=at(2), reason="another model")
    assert (await removed(store, before=LONG_AFTER))[1] == ["r1"]
    assert (await store.learning_facts("s1")).failures.total == before.total
    await require_whole(database_url)


async def test_a_reward_whose_rollout_never_came_goes(store: Store, database_url: str) -> None:
    await create(store)
    await store.add_reward(reward("early", "to come"))
    await store.add_reward(reward("young", "also to come", received_at=at(9)))
    await removed(store, before=5)
    session = await store.session("s1")
    (left,) = (await store.part(session, Part.REWARD, limit=9)).items
    assert left["reward_id"] == "young"
    await require_whole(database_url)


async def test_a_late_call_of_a_removed_rollout_is_no_fault(
    store: Store, database_url: str
) -> None:
    await fill(store)
    piece = await store.remove_old("s1", before=at(LONG_AFTER), limit=100, at=at(LONG_AFTER))
    assert piece.rollout_ids == ("r0", "r1", "r2", "r3")
    # Their calls are there still.
    await require_whole(database_url)


async def test_other_sessions_keep_all(store: Store) -> None:
    await create(store, "s2")
    other = {"session_id": "s2", "candidate_id": "baseline_of_s2"}
    await pin(store, rollout("r1", **other))
    await fill(store)
    await removed(store, before=LONG_AFTER)
    assert await store.rollout("s2", "r1")
    assert sorted(await store.session_ids()) == ["s1", "s2"]


async def test_an_export_says_what_is_gone(store: Store) -> None:
    await fill(store)
    await removed(store, before=90)
    session = await store.session("s1")
    rows = (await store.part(session, Part.REMOVED_ROLLOUT, limit=9)).items
    assert rows == (
        {"rollout_id": "r0", "candidate_id": BASELINE},
        {"rollout_id": "r1", "candidate_id": BASELINE},
    )


async def test_only_old_sets_that_show_unmarked_calls_are_found(store: Store) -> None:
    await create(store)
    young = at(2)
    sets = [
        ("a word", DemonstrationSource.TRAFFIC, at(0)),
        ("a word", DemonstrationSource.REVIEWED, at(0)),
        ("traffic", DemonstrationSource.MARKED, at(0)),
        ('"traffic"', None, at(0)),
        ("a word", DemonstrationSource.TRAFFIC, young),
    ]
    for version, (text, source, created_at) in enumerate(sets, 2):
        shown = Demonstration(input=text, output="billing", source=source)
        value = DemonstrationsValue(demonstrations=(shown,))
        lever = demonstrations(version).model_copy(
            update={"value": value, "created_at": created_at}
        )
        made = candidate(version, instruction_version=1, demonstrations_version=version)
        await store.add_candidates("s1", [lever], [made])
    found = await store.unmarked_demonstrations("s1", before=young)
    assert found == {(LeverName.DEMONSTRATIONS, 2), (LeverName.DEMONSTRATIONS, 3)}
    await store.empty_levers("s1", found, at=at(3), reason="old")
    assert await store.unmarked_demonstrations("s1", before=young) == frozenset()
