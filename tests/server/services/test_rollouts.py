"""Serving and rewards: pins, prompts, traces, credit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from prefect_mipro.errors import (
    CandidateNotFound,
    RewardConflict,
    RewardInvalid,
    RolloutNotFound,
    SessionEnded,
    UpstreamFailed,
    UpstreamUnreachable,
)
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sensors import SensorKind
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.services.calls import Call
from tests.server.services.conftest import Answer, Backend


async def add_human_candidate(backend: Backend, text: str) -> str:
    item = await backend.sessions.add_candidate("s", instruction=text, label="mine")
    return str(item["candidate_id"])


async def test_a_rollout_keeps_its_candidate_over_all_its_calls(backend: Backend) -> None:
    await backend.create()
    await add_human_candidate(backend, "Classify the query with one word, please.")
    chosen = {i: (await backend.call(f"r{i}"))[0] for i in range(12)}
    again = {i: (await backend.call(f"r{i}"))[0] for i in range(12)}
    assert again == chosen
    assert len(set(chosen.values())) == 2


async def test_racing_first_calls_of_one_rollout_get_one_candidate(backend: Backend) -> None:
    await backend.create()
    await add_human_candidate(backend, "Classify the query with one word, please.")
    answers = await asyncio.gather(*(backend.call("r") for _ in range(8)))
    assert len({candidate for candidate, _ in answers}) == 1
    status = await backend.sessions.status("s")
    assert status.rollout_count == 1


async def test_the_candidates_instruction_takes_the_baselines_place(backend: Backend) -> None:
    await backend.create()
    candidate_id = await add_human_candidate(backend, "Name the intent and nothing else.")
    await backend.call(candidate_id=candidate_id, text="Query: my card?")
    assert backend.model.bodies[-1]["messages"] == [
        {"role": "system", "content": "Name the intent and nothing else."},
        {"role": "user", "content": "Query: my card?"},
    ]


async def test_all_but_the_prompt_passes_through_untouched(backend: Backend) -> None:
    await backend.create()
    extra: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "temperature": 0.3,
        "max_tokens": 7,
        "unheard_of": {"a": [1, None]},
    }
    messages = [
        {"role": "system", "content": "You classify queries."},
        {"role": "user", "content": "Query: one"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]},
        {"role": "tool", "tool_call_id": "c", "content": "{}"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
    ]
    await backend.call("r", body={"model": "mine", "messages": messages, **extra})
    sent = backend.model.bodies[-1]
    assert sent == {"model": "mine", "messages": messages, **extra}


async def test_policy_settings_fill_what_the_caller_left_open(backend: Backend) -> None:
    await backend.create()
    await backend.call("r", body={"messages": [{"role": "user", "content": "Query: x"}]})
    assert backend.model.bodies[-1]["model"] == "m"


async def test_a_prompt_that_does_not_match_is_served_as_it_came_and_said_loudly(
    backend: Backend,
) -> None:
    await backend.create()
    messages = [{"role": "system", "content": "Something else."}, {"role": "user", "content": "x"}]
    await backend.call("r", body={"model": "m", "messages": messages})
    assert backend.model.bodies[-1]["messages"] == messages
    status = await backend.sessions.status("s")
    assert status.context_apply.unapplied_calls == 1
    assert "Something else." in (status.context_apply.last_reason or "")
    assert any("1 of 1 calls were served as they came" in text for text in status.warnings)
    (frame,) = await backend.store.frames("s", limit=5)
    applied = [s for s in frame.sensors if s.kind is SensorKind.CONTEXT_APPLY]
    assert [sensor.value for sensor in applied] == [False]


async def test_a_call_leaves_a_frame_with_timing_tokens_and_lever_versions(
    backend: Backend,
) -> None:
    await backend.create()
    await backend.call("r")
    await backend.journal.flush()
    (frame,) = await backend.store.frames("s", limit=5)
    values = {sensor.name: sensor.value for sensor in frame.sensors}
    assert values["prompt_tokens"] == 11
    assert values["completion_tokens"] == 3
    assert values["prompt_applied"] is True
    assert isinstance(values["latency"], float)
    assert frame.lever_versions == {
        "mipro.prompt.s": 1,
        "mipro.instruction.s": 1,
        "mipro.demonstrations.s": 1,
    }


async def test_a_stream_passes_through_byte_for_byte_and_is_traced_whole(backend: Backend) -> None:
    await backend.create()
    session = await backend.store.session("s")
    body = {
        "model": "m",
        "stream": True,
        "messages": [
            {"role": "system", "content": "You classify queries."},
            {"role": "user", "content": "Query: hi"},
        ],
    }
    async with backend.serving.serve(session, Call(body, rollout_id="r")) as served:
        passed = b"".join([chunk async for chunk in served.chunks()])
    assert passed.endswith(b"data: [DONE]\n\n")
    await backend.reward("r")
    await backend.journal.flush()
    (trace,) = await backend.store.example_traces("s", limit=5)
    assert (trace.input, trace.output) == ("Query: hi", "ok")


async def test_a_caller_who_goes_away_is_recorded_all_the_same(backend: Backend) -> None:
    await backend.create()
    session = await backend.store.session("s")
    body = {"model": "m", "messages": [{"role": "user", "content": "Query: hi"}]}
    with pytest.raises(asyncio.CancelledError):
        async with backend.serving.serve(session, Call(body, rollout_id="r")):
            raise asyncio.CancelledError
    await backend.journal.close()
    status = await backend.sessions.status("s")
    (report,) = status.candidates.values()
    assert (report.rollout_count, report.failed_calls) == (1, 1)


async def test_tokens_that_nobody_counted_are_estimated_and_said_to_be(backend: Backend) -> None:
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "nine text"}}]}
    backend.model.answer = lambda _: Answer(json.dumps(answer).encode())
    await backend.create()
    await backend.call("r")
    await backend.journal.flush()
    (frame,) = await backend.store.frames("s", limit=1)
    tokens = {s.name: (s.value, s.metadata) for s in frame.sensors if s.units == "tokens"}
    # The prompt has 31 bytes, the answer 9; a token counts as three.
    assert tokens == {
        "prompt_tokens": (11, {"estimated": True}),
        "completion_tokens": (3, {"estimated": True}),
    }


async def test_a_caller_who_leaves_in_mid_answer_has_used_its_budget(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    await backend.create(termination={"max_tokens": 10})
    session = await backend.store.session("s")
    body = {"model": "m", "messages": [{"role": "user", "content": "Query: " + 30 * "card "}]}
    with pytest.raises(asyncio.CancelledError):
        async with backend.serving.serve(session, Call(body, rollout_id="r")):
            raise asyncio.CancelledError
    await backend.call("r2")
    status = await backend.sessions.status("s")
    assert status.stop_reason == "termination_config.max_tokens of 10 is used up"
    (ended,) = (vars(record) for record in caplog.records if record.msg == "session_ended")
    assert (ended["session_id"], ended["reason"]) == ("s", status.stop_reason)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>busy</html>", content_type="text/html"),
        Answer(b"[1, 2]"),
        Answer(b'{"choices": []}'),
        Answer(b'{"error": {"message": "odd"}}'),
    ],
)
async def test_a_success_that_is_no_completion_is_an_upstream_failure(
    backend: Backend, answer: Answer
) -> None:
    await backend.create()
    backend.model.answer = lambda _: answer
    with pytest.raises(UpstreamFailed, match="nonsense"):
        await backend.call("r")


async def test_an_upstream_that_is_down_names_the_candidate_and_counts_as_failed(
    backend: Backend,
) -> None:
    status = await backend.create()
    backend.model.answer = lambda _: UpstreamUnreachable("nobody listens")
    with pytest.raises(UpstreamUnreachable) as caught:
        await backend.call("r")
    assert caught.value.detail["candidate_id"] == status.baseline_candidate_id
    assert caught.value.detail["rollout_id"] == "r"
    (report,) = (await backend.sessions.status("s")).candidates.values()
    assert report.failed_calls == 1


async def test_an_upstreams_own_error_passes_through_with_its_status(backend: Backend) -> None:
    await backend.create()
    backend.model.answer = lambda _: Answer(b'{"error": {"message": "slow down"}}', status=429)
    _, answer = await backend.call("r")
    assert answer == {"error": {"message": "slow down"}}


async def test_a_named_candidate_is_served_outside_of_learning(backend: Backend) -> None:
    status = await backend.create()
    candidate, _ = await backend.call(candidate_id=status.baseline_candidate_id)
    assert candidate == status.baseline_candidate_id
    after = await backend.sessions.status("s")
    assert (after.rollout_count, after.version) == (0, status.version)
    with pytest.raises(CandidateNotFound, match="cand_nobody"):
        await backend.call(candidate_id="cand_nobody")


async def test_the_same_reward_twice_counts_once_and_another_value_conflicts(
    backend: Backend,
) -> None:
    await backend.create()
    candidate, _ = await backend.call("r")
    first = await backend.reward("r", 1.0)
    second = await backend.reward("r", 1.0)
    assert (first.candidate_id, first.duplicate) == (candidate, False)
    assert (second.candidate_id, second.duplicate) == (candidate, True)
    with pytest.raises(RewardConflict):
        await backend.reward("r", 0.0)
    assert (await backend.sessions.status("s")).reward_count == 1


async def test_a_reward_without_rollout_goes_to_the_newest_unrewarded_of_its_correlation(
    backend: Backend,
) -> None:
    await backend.create()
    await backend.call("old", correlation_id="a")
    await backend.call("new", correlation_id="a")
    await backend.call("other", correlation_id="b")
    assert (await backend.reward(None, correlation_id="a")).rollout_id == "new"
    assert (await backend.reward(None, correlation_id="a")).rollout_id == "old"
    with pytest.raises(RolloutNotFound):
        await backend.reward(None, correlation_id="a")


async def test_a_reward_that_comes_before_its_rollout_is_attached_when_it_runs(
    backend: Backend,
) -> None:
    await backend.create()
    early = await backend.reward("r", 0.5)
    assert (early.attached, early.candidate_id) == (False, None)
    candidate, _ = await backend.call("r")
    again = await backend.reward("r", 0.5)
    assert (again.attached, again.candidate_id, again.duplicate) == (True, candidate, True)
    status = await backend.sessions.status("s")
    assert (status.reward_count, status.candidates[candidate].avg_reward) == (1, 0.5)


@pytest.mark.parametrize("score", [None, "high", float("nan"), float("inf"), [1]])
async def test_a_reward_without_a_finite_number_is_refused(backend: Backend, score: Any) -> None:
    await backend.create()
    await backend.call("r")
    with pytest.raises(RewardInvalid):
        await backend.reward("r", score)
    assert (await backend.sessions.status("s")).reward_count == 0


async def test_a_score_outside_the_range_is_refused_with_the_setting_to_change(
    backend: Backend,
) -> None:
    await backend.create()
    await backend.call("r")
    with pytest.raises(RewardInvalid, match="reward_range"):
        await backend.reward("r", 7)


@pytest.mark.parametrize(("score", "reward"), [(10.000001, 1.0), (-2e-16, 0.0)])
async def test_a_score_outside_the_range_by_a_rounding_is_its_border(
    score: float, reward: float, backend: Backend
) -> None:
    await backend.create(reward_range=[0, 10])
    await backend.call("r")
    assert (await backend.reward("r", score)).reward == reward
    assert (await backend.reward("r", 10 * reward)).duplicate


async def test_a_declared_range_is_scaled_to_the_unit_interval(backend: Backend) -> None:
    await backend.create(reward_range=[0, 10])
    await backend.call("r")
    assert (await backend.reward("r", 7)).reward == pytest.approx(0.7)


async def test_older_names_of_the_score_are_understood(backend: Backend) -> None:
    await backend.create()
    await backend.call("r")
    request = RewardRequest(reward_info={"outcome_reward": 0.25}, rollout_id="r")
    assert (await backend.rollouts.reward("s", request)).reward == 0.25


async def test_stop_ends_the_session_and_the_champion_is_served_from_then_on(
    backend: Backend,
) -> None:
    status = await backend.create()
    await add_human_candidate(backend, "Name the intent and nothing else.")
    await backend.call("r")
    await backend.reward("r", stop=True)
    ended = await backend.sessions.status("s")
    assert (ended.status, ended.stop_reason) == (
        SessionState.SUCCEEDED,
        "stop was sent with a reward",
    )
    served = {(await backend.call(f"later{i}"))[0] for i in range(10)}
    assert served == {status.champion_candidate_id}


async def test_a_cancelled_session_takes_no_rewards_and_cannot_be_resumed(
    backend: Backend,
) -> None:
    await backend.create()
    await backend.call("r")
    await backend.sessions.change_state("s", SessionState.CANCELLED)
    with pytest.raises(SessionEnded):
        await backend.reward("r")
    with pytest.raises(SessionEnded):
        await backend.sessions.change_state("s", SessionState.RUNNING)


async def test_a_paused_session_goes_on_serving_and_counting(backend: Backend) -> None:
    await backend.create()
    await backend.sessions.change_state("s", SessionState.PAUSED)
    await backend.call("r")
    await backend.reward("r")
    status = await backend.sessions.status("s")
    assert (status.status, status.reward_count) == (SessionState.PAUSED, 1)
    assert status.proposer.waiting_for == "the session is paused"


async def test_rollouts_per_candidate_serves_one_candidate_in_blocks(backend: Backend) -> None:
    await backend.create(online_rollouts_per_candidate=3, selection={"strategy": "uniform"})
    await add_human_candidate(backend, "Name the intent and nothing else.")
    served = [(await backend.call(f"r{i}"))[0] for i in range(24)]
    blocks = [set(served[i : i + 3]) for i in range(0, 24, 3)]
    assert all(len(block) == 1 for block in blocks)
    assert len({*served}) == 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rollout": {"budget": 2}}, "mipro.rollout.budget of 2 is used up"),
        (
            {"termination": {"max_rollouts": 2}},
            "termination_config.max_rollouts of 2 is used up",
        ),
        ({"termination": {"max_tokens": 28}}, "termination_config.max_tokens of 28 is used up"),
    ],
)
async def test_a_budget_ends_the_session_once_its_last_reward_is_in(
    backend: Backend, config: dict[str, Any], reason: str
) -> None:
    await backend.create(**config)
    for rollout_id in ("a", "b"):
        assert (await backend.sessions.status("s")).status is SessionState.RUNNING
        await backend.call(rollout_id)
        await backend.reward(rollout_id)
    status = await backend.sessions.status("s")
    assert (status.status, status.stop_reason) == (SessionState.SUCCEEDED, reason)


async def test_a_budget_of_time_ends_the_session_at_the_next_call(backend: Backend) -> None:
    await backend.create(termination={"max_seconds": 60})
    backend.pass_time(61)
    await backend.call("r")
    status = await backend.sessions.status("s")
    assert status.stop_reason == "termination_config.max_seconds of 60 is used up"


async def test_the_trace_keeps_what_was_sent_and_answered(backend: Backend) -> None:
    await backend.create()
    await backend.call("r", text="Query: where is my card?")
    await backend.reward("r", metadata={"expected": "card_arrival", "seed": 4})
    await backend.journal.flush()
    (trace,) = await backend.store.example_traces("s", limit=1)
    assert trace.input == "Query: where is my card?"
    assert trace.expected == "card_arrival"
    assert trace.example_id == "4"
    assert json.loads(json.dumps(trace.model_dump()))["reward"] == 1.0
