"""The deployments: what they name exists, and nothing secret is in them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prefect import Flow, flow
from prefect.settings import PREFECT_API_URL

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig, load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deployments" / "prefect.yaml").read_text("utf-8")
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(TEXT)["deployments"]

each = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["name"])


@each
def test_the_entrypoint_is_a_flow_that_takes_the_parameters(deployment: dict[str, Any]) -> None:
    path, _, name = deployment["entrypoint"].partition(":")
    found = flow.from_source(source=ROOT, entrypoint=f"{path}:{name}")
    assert isinstance(found, Flow)
    assert set(deployment["parameters"]) <= set(inspect.signature(found.fn).parameters)


@each
def test_two_runs_do_not_spend_two_budgets_on_one_session(deployment: dict[str, Any]) -> None:
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_no_block_is_resolved_into_the_deployment() -> None:
    settings = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in settings if "prefect.blocks" in line or "$ref" in line]
    assert not [line for line in settings if "key" in line.lower()]


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("prefect_server")
def test_the_blocks_that_deployments_name_are_saved_by_one_command() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "deployments" / "save_blocks.py")],
        env={
            **os.environ,
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "MIPRO_BACKEND_URL": "https://mipro.example.com",
            "MIPRO_API_KEY": "key-that-nobody-may-see",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "key-that-nobody-may-see" not in run.stdout + run.stderr
    for deployment in DEPLOYMENTS:
        block = load(MiproSessionConfig, deployment["parameters"]["session"])
        assert block.config_body()["prompt_learning"]["algorithm"] == "mipro"
        assert isinstance(block.credentials, MiproCredentials)
        assert block.credentials._block_document_name == deployment["parameters"]["session"]
