"""Prefect's artifacts of one session. Each call is one HTTP request: 10 to 30 ms on loopback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_UI_URL

from prefect_mipro.artifacts import reports
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.models.summaries import Evaluation

HELD_OUT = "held-out"
# A champion of long ago was evaluated many runs ago.
VERSIONS_READ = 50


class SessionArtifacts:
    """The artifacts that one run publishes for its session.

    Keys carry the session: the same key again is a new version, so the page of a key is its
    history over all runs. Progress belongs to a run and is updated in place. `champion_url` is the
    page of the champion published last, where there are pages.
    """

    def __init__(self, session_id: str) -> None:
        self.progress_key = reports.artifact_key(session_id, "progress")
        self.leaderboard_key = reports.artifact_key(session_id, "leaderboard")
        self.champion_key = reports.artifact_key(session_id, "champion")
        self.sensors_key = reports.artifact_key(session_id, "sensors")
        self._held_out_key = reports.artifact_key(session_id, HELD_OUT)
        self.champion_url: str | None = None
        self._progress_id: UUID | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, the one to look at first in front."""
        return (self.champion_key, self.leaderboard_key, self.sensors_key, self.progress_key)

    def show_progress(self, status: SessionStatus, *, done: int, planned: int) -> None:
        """Create the progress bar of this run, or move it."""
        percent = reports.progress(status, done=done, planned=planned)
        description = f"{done} of {planned} rollouts. {reports.headline(status)}"
        if self._progress_id is None:
            created = create_progress_artifact(
                percent, key=self.progress_key, description=description
            )
            self._progress_id = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._progress_id, percent, description=description)

    def publish(self, status: SessionStatus, *, evaluations: Sequence[Evaluation] = ()) -> None:
        """A new version of the leaderboard, the champion page and the sensor frames."""
        headline = reports.headline(status)
        create_table_artifact(
            reports.leaderboard(status), key=self.leaderboard_key, description=headline
        )
        champion = create_markdown_artifact(
            reports.champion_page(status, evaluations=evaluations),
            key=self.champion_key,
            description=headline,
        )
        self.champion_url = page_url(champion) if isinstance(champion, UUID) else None
        if evaluations:
            create_table_artifact(
                reports.held_out(status, evaluations),
                key=self._held_out_key,
                description="Rewards on held-out examples, by candidate.",
            )
        create_table_artifact(
            reports.sensor_frames(status),
            key=self.sensors_key,
            description=f"The {len(status.sensor_frames)} newest sensor frames of the session.",
        )


def page_url(artifact_id: UUID) -> str | None:
    """The artifact's page; none where the run has a temporary server, whose pages end with it."""
    return _page(f"artifacts/artifact/{artifact_id}")


def run_url(flow_run_id: UUID) -> str | None:
    """The flow run's page, where there are pages."""
    return _page(f"runs/flow-run/{flow_run_id}")


def held_out_evaluations(session_id: str) -> tuple[Evaluation, ...]:
    """The newest held-out evaluation of each candidate, from the artifacts of earlier runs."""
    wanted = {
        "artifacts": {"key": {"any_": [reports.artifact_key(session_id, HELD_OUT)]}},
        "sort": "CREATED_DESC",
        "limit": VERSIONS_READ,
    }
    with get_client(sync_client=True) as client:
        versions = client.request("POST", "/artifacts/filter", json=wanted).json()
    found: dict[str, Evaluation] = {}
    for version in versions:
        for row in json.loads(version["data"]):
            found.setdefault(row["id"], reports.evaluation_of(row))
    return tuple(found.values())


def _page(path: str) -> str | None:
    base = PREFECT_UI_URL.value()
    if not base:
        return None
    # Prefect Cloud has no second generation of pages beside the first.
    generation = "" if "/account/" in base else "/v2"
    return f"{base.rstrip('/')}{generation}/{path}"
