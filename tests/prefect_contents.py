"""All that a Prefect server holds, to be searched for what must not be in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

if TYPE_CHECKING:
    from prefect.client.orchestration.routes import ServerRoutes

_FILTERS: tuple[ServerRoutes, ...] = (
    "/artifacts/filter",
    "/automations/filter",
    "/block_documents/filter",
    "/deployments/filter",
    "/events/filter",
    "/flow_runs/filter",
    "/logs/filter",
    "/task_runs/filter",
    "/variables/filter",
    "/work_pools/filter",
)


def told_by_prefect(client: SyncPrefectClient) -> dict[str, str]:
    """What its API answers, by route."""
    return {
        route: client.request(
            "POST", route, json={"filter": {}} if route == "/events/filter" else {}
        ).text
        for route in _FILTERS
    }


def task_runs_of(client: SyncPrefectClient, flow_run_id: str, *, ended: int) -> str:
    """The task runs of a flow run, once so many have ended: the server learns of them by events."""
    wanted = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    deadline = time.monotonic() + 60
    while True:
        runs = client.request("POST", "/task_runs/filter", json=wanted)
        finals = [run for run in runs.json() if run["state_type"] in ("COMPLETED", "FAILED")]
        if len(finals) >= ended:
            return runs.text
        assert time.monotonic() < deadline, runs.text
        time.sleep(0.05)


def stored_by_prefect() -> bytes:
    """The files of its database, in which the secrets of blocks are encrypted."""
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    return b"\n".join(file.read_bytes() for file in database.parent.glob(f"{database.name}*"))
