"""The loop on each kind of task runner (threads, processes, Dask, Ray), and what bounds it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect_dask.task_runners import DaskTaskRunner
from prefect_ray.task_runners import RayTaskRunner

from prefect_mipro import optimize_prompt
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import InputInvalid, NotFound
from prefect_mipro.flows.loop import _Sealed
from prefect_mipro.models.summaries import OptimizationSummary
from prefect_mipro.tasks import (
    LiveRollout,
    RolloutJob,
    SessionHandle,
    run_rollouts,
    session_status,
)
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import SYSTEM, config, new_id

pytestmark = pytest.mark.timeout(400)

Row = dict[str, str]
ROWS: list[Row] = [
    {"id": str(n), "text": f"request number {n}", "label": f"label{n % 4}"} for n in range(20)
]
ROLLOUTS = 6
LIMIT = "model-calls"


def classify(rollout: LiveRollout, row: Row) -> str:
    """The message holds the rollout's place in the run: the model's server sees who calls."""
    place = rollout.rollout_id.rpartition("-")[2]
    return rollout.complete(
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{place}: {row['text']} #{row['label']}"},
        ]
    )


def exact(row: Row, answer: str) -> float:
    return float(answer == row["label"])


def threads() -> TaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=8)


def processes() -> TaskRunner[Any]:
    return ProcessPoolTaskRunner(max_workers=1)


def dask_cluster() -> TaskRunner[Any]:
    one_process = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=one_process)


def ray_node() -> TaskRunner[Any]:
    runner: TaskRunner[Any] = RayTaskRunner(init_kwargs={"num_cpus": 1, "include_dashboard": False})
    return runner


def optimize(
    runner: TaskRunner[Any] | None = None, *, retried: int = 0, **changes: Any
) -> OptimizationSummary:
    flow = optimize_prompt.with_options(task_runner=runner or threads(), retries=retried)
    arguments: dict[str, Any] = {
        # Without a proposer the baseline answers every call: what a run finds is no chance.
        "config": config(online_proposer_mode="off"),
        "examples": ROWS,
        "program": classify,
        "reward": exact,
        "rollouts": ROLLOUTS,
        "session_id": new_id(),
    }
    summary: OptimizationSummary = flow(**(arguments | changes))
    return summary


@pytest.fixture
def at_backend(
    backend: EmbeddedBackend, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> EmbeddedBackend:
    """The environment names the backend and holds its key, as workers on other machines have it."""
    monkeypatch.setenv("MIPRO_BACKEND_URL", backend.url)
    monkeypatch.setenv("MIPRO_API_KEY", backend.api_key.get_secret_value())
    return backend


@pytest.mark.usefixtures("at_backend")
@pytest.mark.parametrize("runner", [threads, processes, dask_cluster, ray_node])
def test_every_runner_runs_each_rollout_once_and_finds_the_same(
    runner: Callable[[], TaskRunner[Any]], model: FakeUpstream
) -> None:
    before = len(model.requests)
    summary = optimize(runner(), rollouts_per_task=2, max_workers=2, held_out=ROWS[:2])
    calls = [request["messages"][-1]["content"] for request in model.requests[before:]]
    learned = Counter(call.partition(":")[0] for call in calls[:ROLLOUTS])
    assert learned == {str(place): 1 for place in range(ROLLOUTS)}
    assert (summary.rollouts, summary.rewarded, summary.failed) == (ROLLOUTS, ROLLOUTS, 0)
    assert summary.mean_score == 0.5
    assert [evaluation.examples for evaluation in summary.evaluations] == [2]


def test_a_run_that_prefect_retries_does_what_is_left_of_its_budget(
    at_backend: EmbeddedBackend,
) -> None:
    calls = iter(range(100))

    def program(rollout: LiveRollout, row: Row) -> str:
        if next(calls) == 4:
            raise NotFound("the model is not there for a moment")
        return classify(rollout, row)

    session_id = new_id()
    summary = optimize(retried=1, program=program, max_workers=1, session_id=session_id)
    handle = SessionHandle(session_id=session_id, backend_url=at_backend.url)
    assert summary.rollouts == ROLLOUTS - 4
    assert session_status.fn(handle).reward_count == ROLLOUTS


def test_what_travels_to_a_worker_holds_no_key(
    session: SessionHandle, backend: EmbeddedBackend
) -> None:
    jobs = [RolloutJob.of(row, row["id"]) for row in ROWS]
    sent = {"jobs": _Sealed(jobs), "session": session, "program": classify, "reward": exact}
    pickled = cloudpickle.dumps((run_rollouts, sent))
    assert backend.api_key.get_secret_value().encode() not in pickled
    task, received = cloudpickle.loads(pickled)
    assert task.name == run_rollouts.name
    assert received["jobs"].unwrap() == jobs
    assert received["session"] == session


@pytest.mark.usefixtures("prefect_server")
def test_workers_that_cannot_know_the_embedded_key_are_refused(
    backend: EmbeddedBackend, model: FakeUpstream
) -> None:
    before = len(model.requests)
    with pytest.raises(InputInvalid, match="set MIPRO_API_KEY"):
        optimize(processes(), backend_url=backend.url)
    assert len(model.requests) == before


@pytest.mark.usefixtures("at_backend")
@pytest.mark.parametrize("rollouts_per_task", [1, 3])
def test_rollouts_start_no_faster_than_the_rate_limit(rollouts_per_task: int) -> None:
    starts: list[float] = []

    def program(rollout: LiveRollout, row: Row) -> str:
        starts.append(time.monotonic())
        return classify(rollout, row)

    began = time.monotonic()
    optimize(program=program, rate_limit=20.0, rollouts_per_task=rollouts_per_task)
    assert len(starts) == ROLLOUTS
    for number, start in enumerate(sorted(starts)):
        assert start - began >= number / 20.0 - 1e-3


@pytest.mark.usefixtures("at_backend")
def test_a_global_limit_bounds_the_rollouts_at_a_time_and_is_given_back() -> None:
    together, most, lock = 0, 0, threading.Lock()
    held: set[int] = set()
    both = threading.Barrier(2, timeout=60)

    def program(rollout: LiveRollout, row: Row) -> str:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        both.wait()
        held.add(slots_taken())
        both.wait()  # until the other has looked, too
        answer = classify(rollout, row)
        with lock:
            together -= 1
        return answer

    with get_client(sync_client=True) as prefect:
        prefect.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=2))
    summary = optimize(program=program, max_workers=8, rollouts_per_task=3, concurrency_limit=LIMIT)
    assert summary.rewarded == ROLLOUTS
    assert most == 2
    assert held == {2}
    assert slots_taken() == 0


def slots_taken() -> int:
    with get_client(sync_client=True) as prefect:
        return prefect.read_global_concurrency_limit_by_name(LIMIT).active_slots


@pytest.mark.usefixtures("at_backend")
def test_a_limit_that_prefect_does_not_have_is_refused() -> None:
    with pytest.raises(InputInvalid, match="global-concurrency-limit create nowhere"):
        optimize(concurrency_limit="nowhere")
