"""All that a Prefect server holds, to be searched for what must not be in it."""

from __future__ import annotations

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


def stored_by_prefect() -> bytes:
    """The files of its database, in which the secrets of blocks are encrypted."""
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    return b"\n".join(file.read_bytes() for file in database.parent.glob(f"{database.name}*"))
