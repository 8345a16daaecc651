"""Prefect's own server, with the packages that are installed beside ours, keeps to a schedule."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.plugin.prefect_processes import running, until

LOOKS_EVERY_SECOND = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
}


@pytest.mark.timeout(900)
def test_the_runs_of_a_schedule_are_planned(tmp_path: Path) -> None:
    with started_server(tmp_path) as prefect:
        until(lambda: answers(prefect))
        prefect.create_deployment(
            flow_id=prefect.create_flow_from_name("optimize-prompt"),
            name="nightly",
            schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *"))],
        )
        until(lambda: any(run.auto_scheduled for run in prefect.read_flow_runs()))


@contextmanager
def started_server(folder: Path) -> Iterator[SyncPrefectClient]:
    """One as people start it: the one that a run starts for itself plans nothing."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    start = ("server", "start", "--port", port, "--no-ui")
    with (
        running(*start, log=folder / "server.log", PREFECT_HOME=str(folder), **LOOKS_EVERY_SECOND),
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
        get_client(sync_client=True) as prefect,
    ):
        yield prefect


def answers(prefect: SyncPrefectClient) -> bool:
    try:
        return prefect.hello().is_success
    except httpx.TransportError:
        return False
