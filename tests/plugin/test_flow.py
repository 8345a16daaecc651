"""The flow on a real Prefect server and a real backend; only the model is a fake."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from pydantic import SecretStr

from prefect_mipro import optimize_prompt
from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig, load
from prefect_mipro.embedded import EmbeddedBackend, running_backend
from prefect_mipro.errors import InputInvalid, ProgramFailed
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.models.summaries import OptimizationSummary
from prefect_mipro.tasks import AsyncLiveRollout, LiveRollout, SessionHandle, session_status
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import SYSTEM, artifacts, config, new_id

pytestmark = pytest.mark.usefixtures("prefect_server")

Row = dict[str, str]
ROWS: list[Row] = [
    {"id": str(n), "text": f"request number {n}", "label": f"label{n % 4}"} for n in range(60)
]


def messages_of(row: Row) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{row['text']} #{row['label']}"},
    ]


def classify(rollout: LiveRollout, row: Row) -> str:
    return rollout.complete(messages_of(row))


async def aclassify(rollout: AsyncLiveRollout, row: Row) -> str:
    return await rollout.complete(messages_of(row))


def broken(_rollout: LiveRollout, _row: Row) -> str:
    raise ZeroDivisionError("no such thing")


def exact(row: Row, answer: str) -> float:
    return float(answer == row["label"])


@pytest.fixture
def at_backend(backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBackend:
    """The environment names the backend."""
    monkeypatch.setenv("MIPRO_BACKEND_URL", backend.url)
    return backend


def optimize(**changes: Any) -> OptimizationSummary:
    arguments: dict[str, Any] = {
        "config": config(),
        "examples": ROWS,
        "program": classify,
        "reward": exact,
        "rollouts": 8,
    }
    summary: OptimizationSummary = optimize_prompt(**(arguments | changes))
    return summary


@pytest.mark.usefixtures("at_backend")
def test_a_run_improves_the_prompt_and_tells_so() -> None:
    summary = optimize(rollouts=200, held_out=ROWS[:40], session_id=new_id())
    baseline = summary.evaluation(summary.baseline_candidate_id)
    best = summary.evaluation(summary.best_candidate_id)
    assert baseline
    assert best
    assert best.mean_reward > baseline.mean_reward + 0.2
    assert (summary.rollouts, summary.rewarded, summary.failed) == (200, 200, 0)
    assert summary.state is SessionState.RUNNING


def test_a_later_run_goes_on_with_the_session(at_backend: EmbeddedBackend) -> None:
    session_id = new_id()
    for _ in range(2):
        optimize(session_id=session_id)
    handle = SessionHandle(session_id=session_id, backend_url=at_backend.url)
    assert session_status.fn(handle).reward_count == 16


def test_a_retried_run_goes_on_with_rollouts_of_its_own(at_backend: EmbeddedBackend) -> None:
    began: list[str] = []

    def broken_once(rollout: LiveRollout, row: Row) -> str:
        began.append(rollout.rollout_id)
        answer = classify(rollout, row)
        if len(began) == 6:
            raise ZeroDivisionError
        return answer

    session_id = new_id()
    optimize_prompt.with_options(retries=1)(
        config(), ROWS, broken_once, exact, rollouts=12, session_id=session_id, on_error="raise"
    )
    handle = SessionHandle(session_id=session_id, backend_url=at_backend.url)
    assert session_status.fn(handle).rollout_count == len(began) == len({*began}) == 12


@pytest.mark.usefixtures("at_backend")
def test_artifacts_show_the_run() -> None:
    summary = optimize(session_id=new_id("Shown"))
    found = artifacts(summary.artifact_keys)
    assert {key.rpartition("-")[2]: shown["type"] for key, shown in found.items()} == {
        "champion": "markdown",
        "leaderboard": "table",
        "sensors": "table",
        "progress": "progress",
    }
    assert found[summary.artifact_keys[-1]]["data"] == 100.0


@pytest.mark.usefixtures("at_backend")
def test_many_rollouts_fit_into_one_task() -> None:
    summary = optimize(session_id=new_id(), rollouts=20, rollouts_per_task=10)
    assert summary.rewarded == 20


@pytest.mark.usefixtures("at_backend")
def test_programs_may_be_coroutine_functions() -> None:
    summary = optimize(session_id=new_id(), program=aclassify, held_out=ROWS[:3])
    assert summary.rewarded == 8
    assert summary.evaluations[0].examples == 3


@pytest.mark.usefixtures("at_backend")
def test_the_last_reward_ends_the_session_when_asked() -> None:
    session_id = new_id()
    assert optimize(session_id=session_id, stop=True).state is SessionState.SUCCEEDED
    again = optimize(session_id=session_id)
    assert (again.rollouts, again.state) == (0, SessionState.SUCCEEDED)


@pytest.mark.usefixtures("at_backend")
def test_a_session_whose_last_rollout_fails_is_ended_all_the_same() -> None:
    calls = iter(range(100))

    def failing_at_last(rollout: LiveRollout, row: Row) -> str:
        if next(calls) == 7:
            raise ZeroDivisionError
        return classify(rollout, row)

    summary = optimize(session_id=new_id(), program=failing_at_last, stop=True, max_workers=1)
    assert summary.state is SessionState.CANCELLED
    assert (summary.rewarded, summary.failed) == (7, 1)


@pytest.mark.usefixtures("at_backend")
def test_a_budget_in_the_config_ends_the_run_early() -> None:
    body = config()
    body["prompt_learning"]["termination_config"] = {"max_rollouts": 10}
    summary = optimize(config=body, session_id=new_id(), rollouts=200, max_workers=2)
    assert summary.rollouts < 40
    assert summary.state is SessionState.SUCCEEDED


@pytest.mark.usefixtures("at_backend")
def test_a_program_that_always_raises_ends_the_run() -> None:
    with pytest.raises(ProgramFailed, match=r"each of the first .* ZeroDivisionError"):
        optimize(session_id=new_id(), program=broken, rollouts=100)


@pytest.mark.usefixtures("at_backend")
def test_a_program_that_raises_at_times_does_not() -> None:
    calls = iter(range(1000))

    def fickle(rollout: LiveRollout, row: Row) -> str:
        if next(calls) % 2:
            raise ZeroDivisionError
        return classify(rollout, row)

    summary = optimize(session_id=new_id(), program=fickle, rollouts=20)
    assert summary.rewarded + summary.failed == 20
    assert summary.failed > 0


@pytest.mark.usefixtures("at_backend")
def test_rollouts_without_examples_are_refused() -> None:
    with pytest.raises(InputInvalid, match="no examples"):
        optimize(session_id=new_id(), examples=[])


@pytest.mark.usefixtures("at_backend")
def test_without_rollouts_a_run_reports_only() -> None:
    summary = optimize(session_id=new_id(), rollouts=0, examples=[], held_out=ROWS[:2])
    assert (summary.rollouts, len(summary.evaluations)) == (0, 1)


@pytest.fixture
def embedded_by_default(
    model: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """No backend is named, and the user's data are kept elsewhere."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("MIPRO_SERVER_UPSTREAM_URL", model.url)
    return tmp_path


def test_without_a_backend_an_embedded_one_serves_the_run(embedded_by_default: Path) -> None:
    seen: list[str] = []

    def program(rollout: LiveRollout, row: Row) -> str:
        seen.append(rollout.base_url)
        return classify(rollout, row)

    for _ in range(2):
        optimize(session_id="kept", program=program, rollouts=5)
    assert (embedded_by_default / "prefect-mipro" / "mipro.db").exists()
    assert len({url.split("/api/")[0] for url in seen}) == 2
    assert running_backend(seen[0].split("/api/")[0]) is None


def test_an_embedded_backend_ends_with_a_run_that_fails(embedded_by_default: Path) -> None:
    seen: list[int] = []

    def program(rollout: LiveRollout, _row: Row) -> str:
        backend = running_backend(rollout.base_url.split("/api/")[0])
        assert backend
        assert backend.process_id
        seen.append(backend.process_id)
        raise ZeroDivisionError

    with pytest.raises(ProgramFailed):
        optimize(session_id="broken", program=program, rollouts=20)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def saved_blocks(backend: EmbeddedBackend, name: str) -> MiproSessionConfig:
    credentials = MiproCredentials(
        # By another name the backend is not known as this process's own.
        backend_url=backend.url.replace("127.0.0.1", "localhost"),
        api_key=SecretStr(backend.api_key.get_secret_value()),
    )
    credentials.save(name)
    block = MiproSessionConfig(
        session_id=name,
        config=config(),
        metadata={"team": "voice"},
        credentials=load(MiproCredentials, name),
    )
    block.save(name)
    return block


def test_a_run_needs_no_more_than_the_name_of_a_block(backend: EmbeddedBackend) -> None:
    name = new_id("named")
    saved_blocks(backend, name)
    summary = optimize(config=name)
    assert (summary.session_id, summary.rewarded) == (name, 8)


def test_a_block_and_a_name_of_credentials_do_as_well(backend: EmbeddedBackend) -> None:
    name = new_id("given")
    saved_blocks(backend, name)
    assert optimize(config=MiproSessionConfig.load(name)).session_id == name
    assert optimize(config=config(), credentials=name, session_id=name).session_id == name


def test_credentials_that_are_not_saved_are_refused(backend: EmbeddedBackend) -> None:
    block = MiproSessionConfig(
        session_id=new_id(),
        config=config(),
        credentials=MiproCredentials(backend_url=backend.url, api_key=backend.api_key),
    )
    with pytest.raises(InputInvalid, match="save them as a block first"):
        optimize(config=block)


@pytest.mark.usefixtures("at_backend")
def test_a_config_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "session.toml"
    path.write_text(
        '[prompt_learning]\nalgorithm = "mipro"\n[prompt_learning.mipro]\n'
        f'system_id = "{new_id("file")}"\n',
        encoding="utf-8",
    )
    assert optimize(config=path).session_id == optimize(config=str(path)).session_id


@pytest.mark.usefixtures("at_backend")
def test_the_loop_may_be_part_of_another_flow() -> None:
    session_id = new_id()

    @flow
    def nightly() -> OptimizationSummary:
        return optimize(session_id=session_id)

    assert nightly().rewarded == 8


def test_prefect_stores_neither_keys_nor_secrets_nor_examples(backend: EmbeddedBackend) -> None:
    name = new_id("discreet")
    saved_blocks(backend, name)
    examples = [{**row, "text": f"confidential {row['text']}"} for row in ROWS]
    optimize(config=name, examples=examples, held_out=examples[:30], rollouts=12)
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0]
    assert run.parameters["examples"] == "<60 items>"
    assert run.parameters["program"].endswith("test_flow.classify")
    secret = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{32}}")
    for table, text in stored_texts():
        assert backend.api_key.get_secret_value() not in text, table
        assert not secret.search(text), table
        # The prompt's demonstrations are examples too, and the champion's page shows them.
        assert table == "artifact" or "confidential" not in text, table


def stored_texts() -> Iterator[tuple[str, str]]:
    """Every text in Prefect's database, with the table it is in."""
    url = str(PREFECT_API_DATABASE_CONNECTION_URL.value())
    with closing(sqlite3.connect(f"file:{url.partition('///')[2]}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                yield from ((table, value) for value in row if isinstance(value, str))
