"""All that a Prefect server holds, to be searched for what must not be in it."""

from __future__ import annotations

from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

_KINDS = (
    "artifacts",
    "automations",
    "block_documents",
    "deployments",
    "events",
    "flow_runs",
    "logs",
    "task_runs",
    "variables",
    "work_pools",
)


def told_by_prefect(client: SyncPrefectClient) -> dict[str, str]:
    """What its API answers, by kind."""
    return {
        kind: client.request(
            "POST", f"/{kind}/filter", json={"filter": {}} if kind == "events" else {}
        ).text
        for kind in _KINDS
    }


def stored_by_prefect() -> bytes:
    """The files of its database, in which the secrets of blocks are encrypted."""
    database = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    return b"\n".join(file.read_bytes() for file in database.parent.glob(f"{database.name}*"))
