"""Champions made and unmade, epochs, missing rewards and the rules that end a session."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import CandidateNotFound, InputInvalid, SessionEnded
from prefect_mipro.models.candidates import DuelState
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.sessions import SessionState
from tests.server.services.conftest import Answer, Backend

BETTER = "You classify queries, and answer with the one word that names the intent."


async def earn(backend: Backend, first: int, last: int, *, better_id: str, chance: float) -> None:
    """Rollouts one by one: the candidate `better_id` earns 1, the others 1 with that chance."""
    for i in range(first, last):
        candidate_id, _ = await backend.call(f"r{i}")
        lucky = (i * 37 % 100) < 100 * chance
        await backend.reward(f"r{i}", float(candidate_id == better_id or lucky))


async def with_better(backend: Backend, **config: Any) -> str:
    """A session with a second candidate, which earns more than the baseline."""
    await backend.create(online_proposer_mode="off", **config)
    added = await backend.sessions.add_candidate("s", instruction=BETTER)
    return str(added["candidate_id"])


async def test_a_better_candidate_wins_its_duel_and_the_status_shows_the_evidence(
    backend: Backend,
) -> None:
    better_id = await with_better(backend)
    await earn(backend, 0, 140, better_id=better_id, chance=0.3)
    status = await backend.sessions.status("s")
    assert status.champion_candidate_id == better_id
    assert status.promotions == 1
    assert status.duel is not None
    assert status.duel.state is not None
    assert status.duel.e_value >= status.duel.threshold == 20.0
    assert status.duel.e_value_against < 1.0
    assert 0.0 < status.duel.detectable_lift <= 1.0
    assert status.exploration_value >= 0.0


async def test_an_earlier_candidate_is_champion_again_with_one_call(backend: Backend) -> None:
    better_id = await with_better(backend)
    await earn(backend, 0, 140, better_id=better_id, chance=0.3)
    baseline_id = (await backend.sessions.status("s")).baseline_candidate_id
    status = await backend.sessions.promote("s", baseline_id, reason="the new one is rude")
    assert status.champion_candidate_id == baseline_id
    assert status.promotions == 1
    events = await backend.store.events("s", since=0, limit=5_000)
    last = [e for e in events if e.event_type == "mipro.champion.promoted"][-1]
    assert "the new one is rude" in last.message


async def test_a_champion_by_hand_gives_up_the_running_duel(backend: Backend) -> None:
    better_id = await with_better(backend)
    await earn(backend, 0, 62, better_id=better_id, chance=0.6)
    duel = await backend.store.duel("s")
    assert duel is not None
    assert duel.state is DuelState.RUNNING
    await backend.sessions.promote("s", better_id, reason="we like it")
    duel = await backend.store.duel("s")
    assert duel is not None
    assert duel.state is DuelState.ABANDONED


async def test_a_retired_candidate_can_be_made_champion(backend: Backend) -> None:
    better_id = await with_better(backend)
    await backend.store.retire("s", [better_id], at=backend.now[0], reason="a test")
    status = await backend.sessions.promote("s", better_id, reason="back again")
    assert status.champion_candidate_id == better_id
    assert status.candidates[better_id].status != "retired"


async def test_an_ended_session_can_still_change_what_it_serves(backend: Backend) -> None:
    better_id = await with_better(backend)
    await backend.sessions.change_state("s", SessionState.CANCELLED)
    await backend.sessions.promote("s", better_id, reason="served from now on")
    assert (await backend.call("late"))[0] == better_id


async def test_only_a_candidate_of_the_session_becomes_champion(backend: Backend) -> None:
    await with_better(backend)
    other = await backend.create("other")
    with pytest.raises(CandidateNotFound, match=other.baseline_candidate_id):
        await backend.sessions.promote("s", other.baseline_candidate_id, reason="no")


async def test_a_new_epoch_forgets_what_was_earned_and_keeps_candidates_and_champion(
    backend: Backend,
) -> None:
    better_id = await with_better(backend)
    await earn(backend, 0, 140, better_id=better_id, chance=0.3)
    before = await backend.sessions.status("s")
    after = await backend.sessions.begin_epoch("s", reason="the model was replaced")
    assert after.epoch == 2
    assert after.champion_candidate_id == before.champion_candidate_id == better_id
    assert after.reward_count == before.reward_count
    means = [report.mean for report in after.candidates.values()]
    assert means == pytest.approx([0.5, 0.5], abs=0.05)
    assert before.candidates[better_id].mean > before.candidates[before.baseline_candidate_id].mean


async def test_a_duel_whose_rewards_all_come_after_its_last_rollout_is_decided_by_them(
    backend: Backend,
) -> None:
    better_id = await with_better(backend, promotion={"min_rewards": 60, "max_rollouts": 60})
    await earn(backend, 0, 62, better_id=better_id, chance=0.0)
    served = {f"late{i}": (await backend.call(f"late{i}"))[0] for i in range(120)}
    for rollout_id, candidate_id in served.items():
        await backend.reward(rollout_id, float(candidate_id == better_id))
    duel = await backend.store.duel("s")
    assert duel is not None
    assert duel.state is DuelState.WON
    assert duel.rollouts >= 60


async def test_in_a_new_epoch_rewards_of_its_own_are_needed_for_a_duel(backend: Backend) -> None:
    better_id = await with_better(backend, promotion={"min_rewards": 60, "max_rollouts": 1})
    await earn(backend, 0, 80, better_id=better_id, chance=0.0)
    before = await backend.store.duel("s")
    assert before is not None
    await backend.sessions.begin_epoch("s", reason="the model was replaced")
    await earn(backend, 80, 139, better_id=better_id, chance=0.0)
    after = await backend.store.duel("s")
    assert after is not None
    assert after.number == before.number


async def test_an_ended_session_begins_no_epoch(backend: Backend) -> None:
    await backend.create()
    await backend.sessions.change_state("s", SessionState.CANCELLED)
    with pytest.raises(SessionEnded, match="new session"):
        await backend.sessions.begin_epoch("s", reason="too late")


async def test_a_reward_that_never_comes_counts_as_missing_after_its_time(
    backend: Backend,
) -> None:
    await backend.create(missing_rewards={"after_seconds": 60.0})
    await backend.call("lost")
    backend.pass_time(30.0)
    await backend.call("found")
    assert (await backend.sessions.status("s")).reward_flow.in_flight == 2
    backend.pass_time(31.0)
    await backend.reward("found")
    # Reading a status changes nothing; what a server does by itself counts the reward as missing.
    assert (await backend.sessions.status("s")).reward_flow.in_flight == 1
    await backend.services.promotion.give_up_overdue()
    flow = (await backend.sessions.status("s")).reward_flow
    assert (flow.rewarded, flow.in_flight, flow.missing, flow.watermark) == (1, 0, 1, 2)


async def test_a_missing_reward_counts_as_what_the_config_imputes(backend: Backend) -> None:
    await backend.create(
        "s", missing_rewards={"after_seconds": 60.0, "impute": -1.0}, reward_range=[-1.0, 1.0]
    )
    for i in range(4):
        await backend.call(f"lost{i}")
    backend.pass_time(61.0)
    await backend.services.promotion.give_up_overdue()
    with_zeros = await backend.sessions.status("s")
    await backend.create("other", missing_rewards={"after_seconds": 60.0})
    without = await backend.sessions.status("other")
    believed = with_zeros.candidates[with_zeros.baseline_candidate_id].mean
    assert believed < without.candidates[without.baseline_candidate_id].mean
    assert with_zeros.reward_count == 0


async def test_a_late_reward_counts_after_all(backend: Backend) -> None:
    await backend.create(missing_rewards={"after_seconds": 60.0})
    await backend.call("late")
    backend.pass_time(61.0)
    await backend.services.promotion.give_up_overdue()
    assert (await backend.sessions.status("s")).reward_flow.missing == 1
    await backend.reward("late", 1.0)
    flow = (await backend.sessions.status("s")).reward_flow
    assert (flow.rewarded, flow.missing) == (1, 0)


async def test_the_reward_curve_waits_for_early_rollouts(backend: Backend) -> None:
    await backend.create()
    for i in range(4):
        await backend.call(f"r{i}")
    for i in (1, 2, 3):
        await backend.reward(f"r{i}", 1.0)
    assert (await backend.sessions.status("s")).reward_curve == []
    await backend.reward("r0", 0.0)
    assert (await backend.sessions.status("s")).reward_curve == [
        (1, 0.0),
        (2, 1.0),
        (3, 1.0),
        (4, 1.0),
    ]


async def test_a_failed_call_is_a_missing_reward_and_not_a_zero(backend: Backend) -> None:
    await backend.create()
    backend.model.answer = lambda body: Answer(b'{"error": {"message": "down"}}', status=500)
    await backend.call("failed")
    status = await backend.sessions.status("s")
    report = status.candidates[status.baseline_candidate_id]
    assert (report.reward_count, report.failed_calls, report.mean) == (0, 1, 0.5)


async def test_evidence_ends_the_session_where_the_config_says_so(backend: Backend) -> None:
    better_id = await with_better(backend, termination={"max_promotions": 1})
    await earn(backend, 0, 140, better_id=better_id, chance=0.3)
    status = await backend.sessions.status("s")
    assert status.status is SessionState.SUCCEEDED
    assert status.stop_reason == "termination_config.max_promotions of 1 is reached"
    assert (await backend.call("afterwards"))[0] == better_id


async def test_a_plateau_ends_the_session(backend: Backend) -> None:
    await with_better(backend, termination={"max_trials_without_improvement": 30})
    await earn(backend, 0, 30, better_id="nobody", chance=0.5)
    status = await backend.sessions.status("s")
    assert status.status is SessionState.SUCCEEDED
    assert "max_trials_without_improvement" in str(status.stop_reason)


async def test_nothing_left_to_explore_ends_the_session(backend: Backend) -> None:
    better_id = await with_better(
        backend,
        termination={"min_exploration_value": 0.05},
        promotion={"enabled": False},
    )
    await earn(backend, 0, 120, better_id=better_id, chance=0.1)
    status = await backend.sessions.status("s")
    assert status.status is SessionState.SUCCEEDED
    assert "min_exploration_value" in str(status.stop_reason)


async def test_a_budget_of_money_ends_the_session(backend: Backend) -> None:
    await backend.create(
        policy={"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": 2.0},
        termination={"max_cost_usd": 1e-9},
    )
    await backend.call("r1")
    await backend.reward("r1")
    status = await backend.sessions.status("s")
    spent = status.spending
    assert spent.cost_usd == (spent.prompt_tokens + 2 * spent.completion_tokens) / 1e6 > 0
    assert status.stop_reason == "termination_config.max_cost_usd of 1e-09 is used up"
    assert status.candidates[status.baseline_candidate_id].cost_usd == spent.cost_usd


async def test_a_humans_prompt_may_bring_demonstrations(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off", selection={"strategy": "uniform"})
    shown = [Demonstration(input="Query: where is it", output="delivery")]
    added = await backend.sessions.add_candidate(
        "s", instruction=BETTER, demonstrations=shown, label="ours"
    )
    assert added["artifact_payload"]["demonstrations"] == [
        {"input": "Query: where is it", "output": "delivery"}
    ]
    assert added["lineage"]["demonstrations"]["actor"] == "human"
    assert added["lineage"]["instruction"]["parent_version"] == 1
    assert added["lineage"]["instruction"]["reason"] == "ours"


async def test_a_humans_prompt_must_keep_the_placeholders(backend: Backend) -> None:
    await backend.create()
    with pytest.raises(InputInvalid, match=r"adds the placeholder \{name\}"):
        await backend.sessions.add_candidate("s", instruction="You are {name} and classify.")
    assert len(await backend.store.candidates("s")) == 1
