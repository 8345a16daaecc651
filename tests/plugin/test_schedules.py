"""Prefect's own server, with the packages that are installed beside ours, keeps to a schedule."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

LONGEST_WAIT_SECONDS = 120.0
LOOKS_EVERY_SECOND = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
}


def test_the_runs_of_a_schedule_are_planned(tmp_path: Path) -> None:
    with started_server(tmp_path) as prefect:
        until(lambda: answers(prefect), tmp_path)
        prefect.create_deployment(
            flow_id=prefect.create_flow_from_name("optimize-prompt"),
            name="nightly",
            schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *"))],
        )
        until(lambda: any(run.auto_scheduled for run in prefect.read_flow_runs()), tmp_path)


@contextmanager
def started_server(folder: Path) -> Iterator[SyncPrefectClient]:
    """One as people start it: the one that a run starts for itself plans nothing."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"],
            env={**os.environ, **LOOKS_EVERY_SECOND, "PREFECT_HOME": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
            get_client(sync_client=True) as prefect,
        ):
            yield prefect
    finally:
        process.terminate()
        process.wait(LONGEST_WAIT_SECONDS)


def answers(prefect: SyncPrefectClient) -> bool:
    try:
        return prefect.hello().is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + LONGEST_WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, (folder / "server.log").read_text("utf-8")
        time.sleep(0.2)
