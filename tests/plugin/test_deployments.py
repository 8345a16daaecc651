"""The deployments: what they name exists, they run through a worker, and no key is in them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flow_runs import resume_flow_run
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from prefect_mipro.blocks import MiproSessionConfig, PromptChampion, load
from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.sessions import CreateSession, SessionState
from tests.fake_upstream import Body, FakeUpstream
from tests.plugin.prefect_processes import LONGEST_WAIT_SECONDS, running, until
from tests.prefect_contents import stored_by_prefect, told_by_prefect

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deployments" / "prefect.yaml").read_text("utf-8")
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(TEXT)["deployments"]
AUTOMATE = ROOT / "deployments" / "automate.py"
SESSION = "everyday-intents"
DEPLOY = "prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all".split()
KEY = "key-that-nobody-may-see"

each = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["name"])


@each
def test_the_entrypoint_is_a_flow_that_takes_the_parameters(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
    assert found.validate_parameters(deployment["parameters"]).keys() >= set(
        deployment["parameters"]
    )


@each
def test_two_runs_do_not_spend_two_budgets_on_one_session(deployment: dict[str, Any]) -> None:
    one_at_a_time = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    # A run that is resumed with an answer must not be cancelled by a limit.
    asks = deployment["name"] == "promotion"
    assert deployment.get("concurrency_limit") == (None if asks else one_at_a_time)


def test_no_block_is_resolved_into_the_deployment() -> None:
    settings = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in settings if "prefect.blocks" in line or "$ref" in line]
    assert not [line for line in settings if "key" in line.lower()]


def test_what_is_served_without_a_worker_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    deployments = runpy.run_path("deployments/serve.py")["deployments"]()
    served = {each.name.removesuffix("-served"): each for each in deployments}
    assert list(served) == [each["name"] for each in DEPLOYMENTS]
    for deployment in DEPLOYMENTS:
        same = served[deployment["name"]]
        assert same.entrypoint == deployment["entrypoint"]
        assert same.parameters == deployment["parameters"]
        assert same.schedules[0].schedule.cron == deployment["schedules"][0]["cron"]
        assert same.concurrency_limit == deployment.get("concurrency_limit", {}).get("limit")
        for ours, theirs in zip(same.triggers, deployment.get("triggers", ()), strict=True):
            assert ours.expect == set(theirs["expect"])
            assert ours.match.root == theirs["match"]
    assert any(deployment.get("triggers") for deployment in DEPLOYMENTS)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server")
def test_deployments_run_through_a_worker_and_keep_the_key_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deployed and run for real: cancelled, resumed, asked about, approved, and never leaking."""
    free = threading.Event()
    model = FakeUpstream(lambda body: _answer_when(free, body))
    monkeypatch.setenv("MIPRO_API_KEY", KEY)
    backend = EmbeddedBackend(
        database_url=f"sqlite:///{tmp_path / 'mipro.db'}",
        log_path=tmp_path / "server.log",
        environment={"MIPRO_SERVER_PROVIDERS": json.dumps({"embedded": {"base_url": model.url}})},
    )
    with model, backend, Client(backend.url, KEY) as mipro, get_client(sync_client=True) as prefect:
        monkeypatch.delenv("MIPRO_API_KEY")
        prefect.create_work_pool(WorkPoolCreate(name="optimizers", type="process"))
        for kind in ("docker", "kubernetes"):
            text = (ROOT / "deployments" / "work-pools" / f"{kind}.json").read_text("utf-8")
            pool = WorkPoolCreate(name=kind, type=kind, base_job_template=json.loads(text))
            prefect.create_work_pool(pool)
        with worker(tmp_path):
            run_side_by_side(
                command(
                    "deployments/save_blocks.py", MIPRO_BACKEND_URL=backend.url, MIPRO_API_KEY=KEY
                ),
                command("-m", *DEPLOY),
            )
            better, third = session_with_other_prompts(mipro)
            for _ in range(2):
                runpy.run_path(str(AUTOMATE))["main"](
                    ["clean-up/cleanup", "--parameter", "session"]
                )
            night = started("optimize-everyday-intents/nightly", held_out=0)
            asking = started("promote-champion/promotion", candidate_id=better)
            # The night is cancelled in the midst of its rollouts.
            until(lambda: bool(model.requests))
            prefect.set_flow_run_state(night.id, Cancelling())
            free.set()
            until(lambda: mipro.session_status(SESSION).status is SessionState.PAUSED)
            # The suspended run has left the worker, and begins anew with the answer, while another
            # run of the same deployment is active.
            until(lambda: named(prefect, asking, "Suspended") and asked(prefect, asking))
            again = started("promote-champion/promotion", candidate_id=better)
            other = started("promote-champion/promotion", candidate_id=third, wait="pause")
            until(lambda: named(prefect, again, "Completed"))
            until(lambda: named(prefect, other, "Paused") and asked(prefect, other))
            assert load(PromptChampion, SESSION).candidate_id != better
            resume_flow_run(asking.id, run_input={"decision": "approve"})
            until(lambda: named(prefect, night, "Cancelled"))
            before = mipro.session_status(SESSION).reward_count
            night = started("optimize-everyday-intents/nightly", rollouts=4, held_out=0)
            until(lambda: named(prefect, asking, "Completed"))
            # It asked about a replacement for a prompt that is not in use any more.
            resume_flow_run(other.id, run_input={"decision": "approve"})
            until(lambda: named(prefect, other, "Completed"))
            until(lambda: named(prefect, night, "Completed"))
        status = mipro.session_status(SESSION)
        assert (status.status, status.reward_count) == (SessionState.RUNNING, before + 4)
        assert status.champion_candidate_id == better
        assert load(PromptChampion, SESSION).candidate_id == better
        told = until(lambda: promotions(prefect))
        assert told[0]["resource"]["prefect-mipro.cause"] == "approval"
        (automated,) = until(lambda: runs_of(prefect, "clean-up"))
        assert automated.parameters["session"] == SESSION
        assert_key_is_nowhere(prefect)


def _answer_when(free: threading.Event, _body: Body) -> str:
    free.wait(LONGEST_WAIT_SECONDS)
    return "music"


def session_with_other_prompts(mipro: Client) -> list[str]:
    """The session of the blocks, with two candidates that somebody added; their ids."""
    block = load(MiproSessionConfig, SESSION)
    mipro.create_session(
        CreateSession(session_id=SESSION, config_body=block.config_body()), request_key="first"
    )
    texts = ("Name the intent.", "Answer with the intent.")
    added = [mipro.add_candidate(SESSION, text) for text in texts]
    return [str(candidate["candidate_id"]) for candidate in added]


@contextmanager
def worker(folder: Path) -> Iterator[None]:
    """A worker of the pool, which knows where Prefect is and no key."""
    log = folder / "worker.log"
    start = ("worker", "start", "--pool", "optimizers")
    api_url = str(PREFECT_API_URL.value())
    with running(*start, log=log, PREFECT_API_URL=api_url, PREFECT_WORKER_QUERY_SECONDS="1"):
        yield
    assert KEY not in log.read_text("utf-8")


def started(deployment: str, **parameters: Any) -> FlowRun:
    """A run of the deployment, which the worker finds."""
    run = run_deployment(deployment, parameters=parameters, timeout=0)
    assert isinstance(run, FlowRun)
    return run


def named(prefect: SyncPrefectClient, run: FlowRun, state: str) -> bool:
    found = prefect.read_flow_run(run.id).state
    if found is not None and found.is_failed():
        pytest.fail(f"{run.name}: {found.message}")
    return found is not None and found.name == state


def asked(prefect: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the form is there; it comes after the state."""
    for state in ("suspended", "paused"):
        inputs = prefect.filter_flow_run_input(
            run.id, f"{state}-champion", limit=10, exclude_keys=set()
        )
        if any(found.key.endswith("-description") for found in inputs):
            return True
    return False


def promotions(prefect: SyncPrefectClient) -> list[dict[str, Any]]:
    wanted = {"filter": {"event": {"name": ["prefect-mipro.champion.promoted"]}}}
    found = prefect.request("POST", "/events/filter", json=wanted).json()["events"]
    return [e for e in found if e["resource"]["prefect.resource.id"].endswith(SESSION)]


def runs_of(prefect: SyncPrefectClient, flow: str) -> list[FlowRun]:
    """Those that an automation has created."""
    found = prefect.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    return [run for run in found if run.created_by and run.created_by.type == "AUTOMATION"]


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Python with these arguments, in the project's root."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**server_environment(), **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_side_by_side(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        with process:
            printed, _ = process.communicate(timeout=LONGEST_WAIT_SECONDS)
            assert process.returncode == 0, printed
            assert KEY not in printed


def server_environment() -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}


def assert_key_is_nowhere(prefect: SyncPrefectClient) -> None:
    """Neither in what the API answers nor in the database, where a block's secret is encrypted."""
    told = told_by_prefect(prefect)
    assert SESSION in told["/deployments/filter"]
    assert not [path for path, text in told.items() if KEY in text]
    stored = stored_by_prefect()
    assert SESSION.encode() in stored
    assert KEY.encode() not in stored
