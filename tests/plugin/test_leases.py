"""Rollouts without the proxy against a real backend: tasks, and programs that call their model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from prefect import Task, flow
from prefect.cache_policies import NO_CACHE

from prefect_mipro import optimize_prompt, tasks
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import InputInvalid, RolloutNotFound
from prefect_mipro.models.leases import Lease, TraceReceipt
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.models.summaries import RolloutOutcome
from prefect_mipro.tasks import AsyncLiveRollout, LiveRollout, SessionHandle
from tests.plugin.conftest import SYSTEM, config, new_id

Call = Callable[..., Any]
Row = dict[str, Any]
ROW: Row = {"id": "7", "request": "play jazz", "label": "music"}
ANSWER: dict[str, Any] = {
    "messages": [{"role": "user", "content": "play jazz"}],
    "output": "music",
    "latency_seconds": 0.5,
}


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Call the task of that name, or its twin, without Prefect around it."""

    def called(name: str, *args: Any, **kwargs: Any) -> Any:
        task: Task[..., Any] = getattr(tasks, f"{request.param}{name}")
        result = task.fn(*args, **kwargs)
        return asyncio.run(result) if request.param else result

    return called


def local_model(system: str, request: str) -> str:
    """A model that is a function of this process."""
    assert system == SYSTEM
    return "music" if "jazz" in request else "weather"


def classify(rollout: LiveRollout, row: Row) -> str:
    lease = rollout.lease({"request": row["request"]})
    answer = local_model(lease.system, lease.turns[-1]["content"])
    rollout.post_trace(messages=lease.messages, output=answer, latency_seconds=0.25)
    return answer


async def aclassify(rollout: AsyncLiveRollout, row: Row) -> str:
    lease = await rollout.lease({"request": row["request"]})
    answer = local_model(lease.system, lease.turns[-1]["content"])
    await rollout.post_trace(messages=lease.messages, output=answer, latency_seconds=0.25)
    return answer


PROGRAMS: dict[str, Callable[..., Any]] = {"": classify, "a": aclassify}


@pytest.fixture
def program(call: Call, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """The program that goes with the twin."""
    return PROGRAMS[request.node.callspec.params["call"]]


def exact(row: Row, answer: str) -> float:
    return float(answer == row["label"])


def status_of(session: SessionHandle) -> SessionStatus:
    return tasks.session_status.fn(session)


@pytest.mark.parametrize("name", ["lease_prompt", "post_trace"])
def test_they_are_neither_cached_nor_stored_and_are_repeated(name: str) -> None:
    task = getattr(tasks, name)
    assert (task.cache_policy, task.persist_result, task.retries) == (NO_CACHE, False, 3)


def test_a_prompt_is_leased_and_its_trace_posted(call: Call, session: SessionHandle) -> None:
    lease: Lease = call("lease_prompt", session, "r1", inputs=ROW, example_id="7")
    receipt: TraceReceipt = call("post_trace", session, "r1", **ANSWER)
    reward = call("report_reward", session, 1.0, rollout_id="r1")
    assert lease.system == SYSTEM
    assert lease.turns == ({"role": "user", "content": "play jazz"},)
    assert receipt.candidate_id == lease.candidate_id == reward.candidate_id
    report = status_of(session).candidates[lease.candidate_id]
    assert (report.rollout_count, report.reward_count, report.latency_seconds) == (1, 1, 0.5)


def test_render_leaves_the_placeholders(call: Call, session: SessionHandle) -> None:
    lease: Lease = call("lease_prompt", session, "r1", render=True)
    assert lease.turns == ({"role": "user", "content": "{request}"},)


def test_a_lease_holds_neither_secret_nor_key(
    call: Call, session: SessionHandle, backend: EmbeddedBackend
) -> None:
    shown = call("lease_prompt", session, "r1", inputs=ROW).model_dump_json()
    assert f"/{session.session_id}." not in shown
    assert backend.api_key.get_secret_value() not in shown


def test_a_trace_of_an_unknown_rollout_is_refused(call: Call, session: SessionHandle) -> None:
    with pytest.raises(RolloutNotFound):
        call("post_trace", session, "nobody", **ANSWER)


def test_a_trace_without_an_answer_is_refused(call: Call, session: SessionHandle) -> None:
    with pytest.raises(InputInvalid, match="output or response, or an error"):
        call("post_trace", session, "r1", messages=ANSWER["messages"], latency_seconds=0.5)


@pytest.mark.usefixtures("prefect_server")
def test_in_a_flow_they_are_tasks_of_their_own(session: SessionHandle) -> None:
    @flow
    def one_rollout() -> TraceReceipt:
        lease = tasks.lease_prompt(session, "r1", inputs=ROW)
        return tasks.post_trace(
            session, lease.rollout_id, messages=lease.messages, output="x", latency_seconds=0.5
        )

    assert one_rollout().duplicate is False


def test_a_program_that_calls_its_own_model_is_a_rollout(
    call: Call, program: Callable[..., Any], session: SessionHandle
) -> None:
    result = call("run_rollout", ROW, session=session, program=program, reward=exact)
    assert (result.outcome, result.score, result.answer) == (RolloutOutcome.REWARDED, 1.0, "music")
    report = status_of(session).candidates[result.candidate_id]
    assert (report.rollout_count, report.reward_count, report.latency_seconds) == (1, 1, 0.25)


def test_an_evaluation_of_such_a_program_leaves_nothing_behind(
    call: Call, program: Callable[..., Any], session: SessionHandle
) -> None:
    baseline_id = status_of(session).baseline_candidate_id
    rain = {"id": "8", "request": "rain?", "label": "music"}
    evaluation = call(
        "evaluate_candidate",
        [ROW, rain],
        session=session,
        candidate_id=baseline_id,
        program=program,
        reward=exact,
    )
    assert evaluation.mean_reward == 0.5
    assert status_of(session).rollout_count == 0


def test_the_example_of_a_rollout_goes_with_its_lease(
    call: Call, program: Callable[..., Any], backend: EmbeddedBackend
) -> None:
    session = tasks.create_session.fn(config(), session_id=new_id(), backend_url=backend.url)
    call("run_rollout", ROW, session=session, program=program, reward=exact)
    (item,) = tasks.list_seed_evals.fn(session)["items"]
    assert (item["seed"], item["reward"]) == (7, 1.0)


@pytest.mark.usefixtures("prefect_server")
def test_the_whole_loop_runs_such_a_program(backend: EmbeddedBackend) -> None:
    rows = [{"id": str(n), "request": f"jazz number {n}", "label": "music"} for n in range(6)]
    summary = optimize_prompt(
        config(),
        rows,
        classify,
        exact,
        rollouts=6,
        held_out=[ROW],
        session_id=new_id(),
        backend_url=backend.url,
    )
    assert (summary.rewarded, summary.failed) == (6, 0)
    assert [evaluation.mean_reward for evaluation in summary.evaluations] == [1.0]
