"""The reference flow as people run it, on a real Prefect server and a real backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import SessionNotFound
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import artifacts

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOW = Path(__file__).parents[2] / "flows" / "optimize_prompt.py"
DATA = FLOW.parent / "data" / "everyday_intents.jsonl"
LABEL_OF = {
    row["text"]: row["label"] for row in map(json.loads, DATA.read_text("utf-8").splitlines())
}


def small_model(body: dict[str, Any]) -> str:
    """Right for a quarter of the requests; with demonstrations for nine in ten."""
    text = body["messages"][-1]["content"]
    shown = sum(message["role"] == "assistant" for message in body["messages"])
    luck = zlib.crc32(text.encode()) / 2**32
    return LABEL_OF.get(text, "?") if luck < (0.9 if shown else 0.25) else "I am not sure."


@pytest.fixture(scope="module")
def reference_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    folder = tmp_path_factory.mktemp("reference")
    with FakeUpstream(small_model) as upstream:
        providers = json.dumps({"embedded": {"base_url": upstream.url}})
        with EmbeddedBackend(
            database_url=f"sqlite:///{folder / 'mipro.db'}",
            log_path=folder / "server.log",
            environment={"MIPRO_SERVER_PROVIDERS": providers},
        ) as running:
            yield running


def start(backend: EmbeddedBackend, session_id: str, rollouts: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, str(FLOW), "--session-id", session_id),
            *("--rollouts", str(rollouts), "--held-out", "70"),
        ],
        env={
            **os.environ,
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "MIPRO_BACKEND_URL": backend.url,
            "MIPRO_API_KEY": backend.api_key.get_secret_value(),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def client(reference_backend: EmbeddedBackend) -> Iterator[Client]:
    with Client(reference_backend.url, reference_backend.api_key) as client:
        yield client


def test_it_ends_with_a_table_of_a_better_prompt_and_its_artifacts(
    reference_backend: EmbeddedBackend, client: Client
) -> None:
    with start(reference_backend, "reference", 200) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    status = client.session_status("reference")
    assert status.reward_count == status.rollout_count == 200
    assert status.champion_candidate_id != status.baseline_candidate_id
    table = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert float(table["champion"][2]) > float(table["baseline"][2]) + 0.3
    assert table["champion"][-1] == "70"
    assert reference_backend.api_key.get_secret_value() not in printed
    keys = tuple(
        f"mipro-reference-{name}" for name in ("progress", "leaderboard", "champion", "sensors")
    )
    assert artifacts(keys).keys() == set(keys)


def test_a_run_that_was_killed_is_resumed_and_counts_nothing_twice(
    reference_backend: EmbeddedBackend, client: Client
) -> None:
    with start(reference_backend, "killed", 400) as process:
        wait_for_rewards(client, "killed", 30, process)
        process.kill()
    settled = client.session_status("killed")
    with start(reference_backend, "killed", 40) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    after = client.session_status("killed")
    # What the killed run had in flight is counted as served, and never as rewarded.
    in_flight = after.rollout_count - after.reward_count
    assert after.reward_count == settled.reward_count + 40
    assert 0 <= in_flight <= 8
    assert settled.baseline_candidate_id == after.baseline_candidate_id


def wait_for_rewards(
    client: Client, session_id: str, rewards: int, process: subprocess.Popen[str]
) -> None:
    while process.poll() is None:
        try:
            if client.session_status(session_id).reward_count >= rewards:
                return
        except SessionNotFound:
            pass
        time.sleep(0.05)
    raise AssertionError("the flow ended before it could be killed")
