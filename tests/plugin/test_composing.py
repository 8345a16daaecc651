"""A step of an existing flow, run by a real Prefect: blocks by name, retries, coroutines."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid5

import pytest
from prefect import flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.states import Crashed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig, load
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import ConfigNotFound, InputInvalid
from prefect_mipro.models.summaries import RewardOutcome, RewardReport, RolloutResult
from prefect_mipro.tasks import (
    SessionHandle,
    aopen_session,
    areport_rewards,
    arollout_step,
    open_session,
    report_rewards,
    rollout_step,
    session_status,
)
from tests.plugin.conftest import config, new_id

pytestmark = pytest.mark.usefixtures("prefect_server")

two_at_a_time: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=2)
ROWS = [{"id": number, "request": f"play {number} #music"} for number in range(3)]


@pytest.fixture(scope="module")
def block(backend: EmbeddedBackend, prefect_server: None) -> str:
    """The name of a saved config, which holds saved credentials."""
    name = "composing"
    MiproCredentials(backend_url=backend.url, api_key=backend.api_key).save(name)
    credentials = load(MiproCredentials, name)
    MiproSessionConfig(session_id=new_id(), config=config(), credentials=credentials).save(name)
    return name


def counts(session: SessionHandle) -> tuple[int, int]:
    status = session_status.fn(session)
    return status.rollout_count, status.reward_count


def test_a_step_needs_the_name_of_a_block_and_three_calls(block: str) -> None:
    @flow(task_runner=two_at_a_time)
    def label(rows: list[dict[str, Any]]) -> tuple[SessionHandle, RewardReport, UUID]:
        session = open_session(block, session_id=new_id())
        results = rollout_step.map(rows, session=unmapped(session))
        report = report_rewards(session, [(result, 1.0) for result in results])
        return session, report, UUID(str(flow_run.get_id()))

    session, report, run_id = label(ROWS)
    assert (report.accepted, counts(session)) == (3, (3, 3))
    assert session.credentials == block
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
    assert f"prefect-mipro.session.{session.session_id}" in run.labels


def test_failed_futures_keep_no_other_rollout_from_its_reward(block: str) -> None:
    @flow(task_runner=two_at_a_time)
    def label(rows: list[dict[str, Any]]) -> tuple[SessionHandle, RewardReport, RewardReport]:
        session = open_session(block, session_id=new_id())
        results = rollout_step.map(rows, session=unmapped(session))
        rewards: list[Any] = [(result, 1.0) for result in results]
        rewards += [(Crashed(message="no such node"), 1.0), ("other", Failed(message="no judge"))]
        report = report_rewards(session, rewards)
        again = report_rewards.with_options(retries=0).submit(session, rewards=rewards)
        return session, report, again.result()

    session, report, again = label([*ROWS, {"id": 3}])
    assert (report.accepted, counts(session)) == (3, (3, 3))
    failed = RewardOutcome.FAILED
    assert report.rollout_ids[failed] == ("rewards[3]", "rewards[4]")
    assert again.rollout_ids[failed] == report.rollout_ids[failed]
    assert "no value for" in report.problems["rewards[3]"]
    assert "ended as Crashed: no such node" in report.problems["rewards[4]"]
    assert "ended as Failed: no judge" in report.problems["other"]
    assert (again.counts["repeated"], again.counts["invalid"]) == (3, 1)


def test_the_same_in_coroutines(block: str) -> None:
    @flow
    async def label(rows: list[dict[str, Any]]) -> tuple[SessionHandle, RewardReport]:
        session = await aopen_session(block, session_id=new_id())
        results: list[RolloutResult] = await asyncio.gather(
            *(arollout_step(row, session=session) for row in rows)
        )
        return session, await areport_rewards(session, {each.rollout_id: 1 for each in results})

    session, report = asyncio.run(label(ROWS))
    assert (report.accepted, counts(session)) == (3, (3, 3))


def test_a_retry_is_the_same_rollout_and_rewards_it_once(block: str) -> None:
    ids: list[str] = []

    @task(retries=1)
    def label(row: dict[str, Any], session: SessionHandle) -> None:
        with session.rollout(row) as rollout:
            rollout.complete([{"role": "user", "content": row["request"]}])
            rollout.reward(1.0)
        run = TaskRunContext.get()
        assert run is not None
        assert rollout.rollout_id == str(uuid5(run.task_run.id, "0"))
        ids.append(rollout.rollout_id)
        if len(ids) == 1:
            raise ZeroDivisionError

    @flow
    def retried() -> SessionHandle:
        session = open_session(block, session_id=new_id())
        label(ROWS[0], session)
        return session

    session = retried()
    assert len(ids) == 2
    assert counts(session) == (1, 1)


def test_a_handle_that_is_mapped_over_is_named(block: str) -> None:
    @flow
    def forgetful() -> None:
        session = open_session(block, session_id=new_id())
        rows = ROWS * 2
        rollout_step.map(rows[: len(SessionHandle.model_fields)], session=session).result()

    with pytest.raises(InputInvalid, match=r"to `\.map` give unmapped\(session\)"):
        forgetful()


def test_a_block_that_nobody_saved_is_named() -> None:
    sentence = "no MiproSessionConfig block is saved as 'nobody'; save one by that name, or give"
    with pytest.raises(ConfigNotFound, match=sentence):
        open_session("nobody")
    with pytest.raises(ConfigNotFound, match=sentence):
        asyncio.run(aopen_session("nobody"))
