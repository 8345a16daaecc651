"""Rollouts that failed because of their prompts: counted once, and evidence in their duel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefect_mipro.models.candidates import DuelObservation, DuelState
from prefect_mipro.models.rollouts import CallFailure, FailedRollout, FailureKind
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    duel,
    event_types,
    pin,
    reward,
    rollout,
    trace,
)

SHARES = {BASELINE: 0.5, "cand_2": 0.5}
CHALLENGER = "cand_2"
OF_DUEL = {"duel_number": 1, "predicted_reward": 0.5}


def failure(kind: FailureKind = FailureKind.REFUSED, **values: object) -> CallFailure:
    return CallFailure.model_validate(
        {
            "candidate_id": CHALLENGER,
            "kind": kind,
            "reason": "status 400",
            "shares": SHARES,
            **values,
        }
    )


async def fail(store: Store, failed: CallFailure, rollout_id: str = "r1") -> None:
    number = rollout_id.removeprefix("r")
    own = {"candidate_id": failed.candidate_id, "status": 400, "created_at": at(1)}
    made = CallRecord(trace(f"trace_{number}", rollout_id, **own))
    await store.record_calls([replace(made, failure=failed)])


async def counted(store: Store, candidate_id: str = CHALLENGER) -> tuple[int, int, int, int]:
    of = (await store.candidate(candidate_id)).statistics
    return of.rollouts, of.rewards, of.missing, of.failures


@pytest.fixture
async def dueling(store: Store) -> Store:
    await create(store)
    await challenge(store)
    await store.open_duel(duel())
    await pin(store, rollout("r1", CHALLENGER, **OF_DUEL))
    return store


async def observed(store: Store) -> list[tuple[bool, float]]:
    observations = await store.duel_observations("s1", 1)
    return [(o.is_challenger, o.reward) for o in observations]


async def test_a_refused_call_settles_its_rollout_and_counts_as_zero_in_the_duel(
    dueling: Store,
) -> None:
    await fail(dueling, failure())
    assert await counted(dueling) == (1, 0, 1, 1)
    assert (await dueling.candidate(CHALLENGER)).last_failure == "status 400"
    assert await dueling.watermark("s1") == 1
    assert await observed(dueling) == [(True, 0.0)]
    found = await dueling.duel("s1")
    assert found is not None
    assert (found.rewards, found.reward_sum) == (1, 0.0)
    assert (await event_types(dueling, since=3)) == ["rollout.failed"]


async def test_a_rollout_fails_once(dueling: Store) -> None:
    await fail(dueling, failure())
    await pin(dueling, rollout("r2", CHALLENGER))
    second = CallRecord(trace("trace_9", "r1", candidate_id=CHALLENGER, status=400))
    await dueling.record_calls([replace(second, failure=failure())])
    assert await counted(dueling) == (2, 0, 1, 1)


async def test_a_reward_after_a_refusal_counts_but_comes_too_late_for_the_duel(
    dueling: Store,
) -> None:
    await fail(dueling, failure())
    await dueling.add_reward(reward("reward_1", "r1", 1.0))
    assert await counted(dueling) == (1, 1, 0, 1)
    assert await observed(dueling) == [(True, 0.0)]


@pytest.mark.parametrize("kind", [FailureKind.FILTERED, FailureKind.EMPTY, FailureKind.CUT])
async def test_a_reward_says_that_the_caller_could_use_a_spoilt_answer(
    dueling: Store, kind: FailureKind
) -> None:
    await fail(dueling, failure(kind))
    assert await counted(dueling) == (1, 0, 0, 1)
    assert await observed(dueling) == []
    await dueling.add_reward(reward("reward_1", "r1", 0.75))
    assert await counted(dueling) == (1, 1, 0, 0)
    assert await observed(dueling) == [(True, 0.75)]
    assert (await dueling.learning_facts("s1")).failures.newest == ()


async def test_a_reward_of_zero_does_not_take_a_failure_back(dueling: Store) -> None:
    await fail(dueling, failure(FailureKind.EMPTY))
    await dueling.add_reward(reward("reward_1", "r1", 0.0))
    assert await counted(dueling) == (1, 1, 0, 1)


async def test_a_spoilt_answer_without_a_reward_counts_as_zero_when_it_is_given_up(
    dueling: Store,
) -> None:
    await fail(dueling, failure(FailureKind.EMPTY))
    await dueling.give_up("s1", after_rewards=1, pinned_before=at(9), at=at(9))
    assert await observed(dueling) == [(True, 0.0)]


async def test_what_was_rewarded_or_given_up_does_not_fail_later(dueling: Store) -> None:
    await pin(dueling, rollout("r2", CHALLENGER))
    await dueling.add_reward(reward("reward_1", "r1", 1.0))
    await dueling.give_up("s1", after_rewards=1, pinned_before=at(9), at=at(9))
    await fail(dueling, failure(), "r1")
    await fail(dueling, failure(), "r2")
    assert await counted(dueling) == (2, 1, 1, 0)


async def test_after_a_fallback_the_reward_is_the_champions_and_the_failure_the_challengers(
    dueling: Store,
) -> None:
    found = await dueling.fall_back("s1", "r1", failure(), BASELINE, at=at(1))
    assert (found.candidate_id, found.failed_candidate_id, found.fell_back) == (
        BASELINE,
        CHALLENGER,
        True,
    )
    await fail(dueling, failure())  # the record of the refused call
    receipt = await dueling.add_reward(reward("reward_1", "r1", 1.0))
    assert receipt.reward.candidate_id == BASELINE
    assert await counted(dueling) == (0, 0, 0, 1)
    assert await counted(dueling, BASELINE) == (1, 1, 0, 0)
    # Not by chance was it served with the champion: no evidence for that.
    assert (await dueling.learning_facts("s1")).blocks == ()
    assert await dueling.duel_observations("s1", 1) == (
        DuelObservation(is_challenger=True, reward=0.0, predicted_reward=0.5),
    )


async def test_of_two_calls_that_fall_back_at_once_one_counts(dueling: Store) -> None:
    await dueling.fall_back("s1", "r1", failure(), BASELINE, at=at(1))
    again = await dueling.fall_back("s1", "r1", failure(), BASELINE, at=at(2))
    assert again.candidate_id == BASELINE
    assert await counted(dueling) == (0, 0, 0, 1)
    assert await counted(dueling, BASELINE) == (1, 0, 0, 0)


async def test_failures_are_told_oldest_first_with_the_shares_of_the_traffic(
    dueling: Store,
) -> None:
    await pin(dueling, rollout("r2"))
    await fail(dueling, failure(candidate_id=BASELINE), "r2")
    await dueling.fall_back("s1", "r1", failure(), BASELINE, at=at(1))
    told = (await dueling.learning_facts("s1")).failures
    assert told.total == 2
    assert told.newest == (
        FailedRollout(candidate_id=CHALLENGER, shares=SHARES),
        FailedRollout(candidate_id=BASELINE, shares=SHARES),
    )


async def test_a_new_epoch_begins_without_failures(dueling: Store) -> None:
    await fail(dueling, failure())
    await dueling.begin_epoch("s1", at=at(2), reason="another model")
    told = (await dueling.learning_facts("s1")).failures
    assert (told.total, told.newest) == (1, ())


async def test_the_smallest_room_for_demonstrations_is_kept(dueling: Store) -> None:
    for number, room in enumerate((900, None, 700, 800), start=2):
        await pin(dueling, rollout(f"r{number}", CHALLENGER))
        await fail(dueling, failure(demonstration_room=room), f"r{number}")
    assert (await dueling.candidate(CHALLENGER)).demonstration_room == 700


async def test_a_challenger_that_is_retired_for_its_failures_cannot_win_any_more(
    dueling: Store,
) -> None:
    await dueling.retire("s1", [CHALLENGER], at=at(1), reason="it fails", ends_duel=True)
    await dueling.close_duel("s1", 1, DuelState.WON, at=at(2), reason="e-value 25")
    found = await dueling.duel("s1")
    assert found is not None
    assert found.state is DuelState.ABANDONED
    assert (await dueling.session("s1")).champion_id == BASELINE
