"""What a run tells while it goes on: how it stands, and not that each rollout has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.tasks import LiveRollout
from prefect_mipro.tasks.logs import quiet_rollouts
from tests.plugin.conftest import artifacts, config, new_id
from tests.plugin.test_flow import Row, classify, optimize

pytestmark = pytest.mark.usefixtures("prefect_server")


class Lines(logging.Handler):
    """The messages that a logger lets through."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def lines_of(name: str, *, level: int = logging.INFO) -> Iterator[list[str]]:
    logger, lines = logging.getLogger(name), Lines()
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(lines)
    try:
        yield lines.messages
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)


def fails_once(rollout: LiveRollout, row: Row) -> str:
    if row["id"] == "7":
        raise ZeroDivisionError(row["id"])
    return classify(rollout, row)


def greets(rollout: LiveRollout, _row: Row) -> str:
    others = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "hi"}]
    return rollout.complete(others)


@pytest.mark.parametrize("rollouts_per_task", [1, 4])
def test_no_line_tells_that_a_rollout_has_completed(
    backend: EmbeddedBackend, rollouts_per_task: int
) -> None:
    with lines_of("prefect.task_runs") as lines:
        optimize(
            session_id=new_id(),
            rollouts=12,
            rollouts_per_task=rollouts_per_task,
            backend_url=backend.url,
        )
    # That of the task which opens the session.
    assert [line for line in lines if line.startswith("Finished")] == [
        "Finished in state Completed()"
    ]


def test_at_the_level_debug_each_rollout_is_told(backend: EmbeddedBackend) -> None:
    with lines_of("prefect.task_runs", level=logging.DEBUG) as lines:
        optimize(session_id=new_id(), rollouts=4, backend_url=backend.url)
    assert lines.count("Finished in state Completed()") == 5


def test_a_rollout_that_fails_is_told(backend: EmbeddedBackend) -> None:
    with lines_of("prefect.task_runs") as lines:
        optimize(session_id=new_id(), rollouts=60, program=fails_once, backend_url=backend.url)
    assert [line for line in lines if "ZeroDivisionError" in line]


def test_rollouts_without_the_prompt_and_a_config_that_is_not_taken_over_are_told(
    backend: EmbeddedBackend,
) -> None:
    session_id = new_id()
    told = {"session_id": session_id, "backend_url": backend.url}
    with lines_of("prefect.task_runs", level=logging.WARNING) as lines:
        assert optimize(rollouts=4, **told).unapplied_rollouts == 0
        assert lines == []
        summary = optimize(rollouts=12, program=greets, config=config(seed=7), **told)
    assert (summary.rollouts, summary.rewarded, summary.unapplied_rollouts) == (12, 12, 12)
    kept, first, tenth = lines
    assert "keeps its config; yours differs in prompt_learning.mipro.seed" in kept
    assert "(1 so far)" in first
    assert "'You are helpful.'" in first
    assert "(10 so far)" in tenth
    page = artifacts((f"mipro-{session_id}-champion",))[f"mipro-{session_id}-champion"]["data"]
    assert "12 of 16 rollouts ran without their candidate's prompt" in page


def test_lines_of_other_runs_are_left_alone() -> None:
    told = {"task_name": "run-rollout", "flow_run_id": "another"}
    with lines_of("prefect.task_runs") as lines, quiet_rollouts("this one"):
        logging.getLogger("prefect.task_runs").info("Finished in state Completed()", extra=told)
    assert lines == ["Finished in state Completed()"]


def test_the_last_line_leads_to_the_champion(backend: EmbeddedBackend) -> None:
    with lines_of("prefect.flow_runs") as lines:
        summary = optimize(session_id=new_id(), backend_url=backend.url)
    newest = artifacts(summary.artifact_keys)[summary.artifact_keys[0]]["latest_id"]
    (line,) = [line for line in lines if "/artifacts/" in line]
    assert line.endswith(f"/v2/artifacts/artifact/{newest}")
