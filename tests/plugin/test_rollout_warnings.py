"""Rollouts whose program sends other messages than the session's prompt: the run's log says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_mipro.models.summaries import RolloutResult
from prefect_mipro.tasks import (
    LiveRollout,
    RolloutJob,
    SessionHandle,
    report_reward,
    session_status,
)
from prefect_mipro.tasks.rollout_warnings import Topic, WarningCounts
from tests.plugin.conftest import SYSTEM
from tests.plugin.run_log import logged
from tests.plugin.twins import both, call

ROW = {"id": "7", "request": "play jazz #music"}
OTHERS = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "hi"}]


def complete(rollout: LiveRollout, _row: object) -> str:
    return rollout.complete(OTHERS)


def openai(rollout: LiveRollout, _row: object) -> str:
    answer = rollout.openai().chat.completions.create(model="small", messages=OTHERS)  # type: ignore[arg-type]
    return str(answer.choices[0].message.content)


def streamed(rollout: LiveRollout, _row: object) -> str:
    with rollout.openai().chat.completions.stream(
        model="small",
        messages=OTHERS,  # type: ignore[arg-type]
    ) as stream:
        return str(stream.get_final_completion().choices[0].message.content)


def leased(rollout: LiveRollout, _row: object) -> str:
    lease = rollout.lease(messages=OTHERS)
    rollout.post_trace(messages=lease.messages, output="music", latency_seconds=0.25)
    return "music"


def mixed(rollout: LiveRollout, row: object) -> str:
    rollout.complete(OTHERS)
    return rollout.ask(row)


async def acomplete(rollout: Any, _row: object) -> str:
    return str(await rollout.complete(OTHERS))


async def aopenai(rollout: Any, _row: object) -> str:
    answer = await rollout.openai().chat.completions.create(model="small", messages=OTHERS)
    return str(answer.choices[0].message.content)


@pytest.mark.parametrize("program", [complete, openai, streamed, leased, acomplete, aopenai])
def test_a_step_says_what_the_prompt_expects_and_what_came(
    session: SessionHandle, program: Callable[..., Any]
) -> None:
    twin = "a" if program.__name__.startswith("a") else ""
    with logged() as warnings:
        result = call(f"{twin}rollout_step", ROW, session=session, program=program)
    assert result.prompt_applied is False
    (warning,) = warnings
    for words in (session.session_id, repr(SYSTEM), "'You are helpful.'", "rollout.ask(row)"):
        assert words in warning


@pytest.mark.parametrize("program", [None, mixed], ids=["its own prompt", "one call of two"])
def test_nothing_is_said_where_a_call_had_the_prompt(
    session: SessionHandle, program: Callable[..., Any] | None
) -> None:
    with logged() as warnings:
        result = call("rollout_step", ROW, session=session, program=program)
    assert (result.prompt_applied, warnings) == (True, [])


@both
def test_a_report_of_rewards_counts_them(twin: str, session: SessionHandle) -> None:
    for number in range(3):
        call("rollout_step", ROW, session=session, program=complete, rollout_id=f"r{number}")
    call("rollout_step", ROW, session=session, rollout_id="good")
    with logged() as warnings:
        report = call(
            f"{twin}report_rewards", session, {"r0": 1.0, "r1": 0.0, "r2": 1.0, "good": 0.5}
        )
    assert (report.accepted, report.unapplied_rollouts) == (4, 3)
    (warning,) = warnings
    assert warning.startswith(f"Rewarded rollouts of session {session.session_id} ran without")
    assert "(3 so far)" in warning
    status = session_status.fn(session)
    assert (status.reward_flow.rewarded, status.context_apply.unapplied_rollouts) == (1, 3)


def test_a_single_reward_says_it(session: SessionHandle) -> None:
    call("rollout_step", ROW, session=session, program=complete, rollout_id="r0")
    with logged() as warnings:
        assert report_reward.fn(session, 1.0, rollout_id="r0").prompt_applied is False
    assert len(warnings) == 1


def test_a_block_and_many_rollouts_say_it_at_the_first_and_at_the_tenth(
    session: SessionHandle,
) -> None:
    with logged() as warnings:
        with session.rollout(ROW) as rollout:
            rollout.complete(OTHERS)
            rollout.reward(1.0)
        assert rollout.result.prompt_applied is False
        jobs = [RolloutJob.of(ROW, f"r{number}") for number in range(12)]
        results: list[RolloutResult] = call(
            "run_rollouts", jobs, session=session, program=complete, reward=lambda *_: 1.0
        )
    assert {result.prompt_applied for result in results} == {False}
    first, tenth = warnings
    assert "(1 so far)" in first
    assert "(10 so far)" in tenth
    assert session_status.fn(session).reward_flow.rewarded == 0


@both
def test_an_evaluation_says_that_it_means_nothing(twin: str, session: SessionHandle) -> None:
    baseline_id = session_status.fn(session).baseline_candidate_id
    with logged() as warnings:
        evaluation = call(
            f"{twin}evaluate_candidate",
            [ROW, ROW],
            session=session,
            candidate_id=baseline_id,
            program=acomplete if twin else complete,
            reward=lambda *_: 1.0,
        )
    assert evaluation.unapplied_examples == 2
    (warning,) = warnings
    assert "2 of the 2 held-out examples" in warning


def test_counts_are_told_whenever_they_have_a_digit_more() -> None:
    counts = WarningCounts()
    told = [counts.due("s", Topic.UNAPPLIED) for _ in range(101)]
    assert [number for number in told if number] == [1, 10, 100]
    assert counts.due("s", Topic.UNAPPLIED_REWARD, more=7) == 7
    assert counts.due("s", Topic.UNAPPLIED_REWARD, more=5) == 12
    assert counts.due("s", Topic.UNAPPLIED_REWARD, more=0) == 0
    assert counts.due("another", Topic.UNAPPLIED) == 1
