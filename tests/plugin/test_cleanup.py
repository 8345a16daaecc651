"""Tidying up: what is idle, what is old, and what is never touched."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from prefect_mipro.flows.cleanup import Idle, clean_up, last_used, old_versions
from prefect_mipro.models.sensors import SensorFrameSummary
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.tasks import SessionHandle, create_session, session_status
from tests.embedded_backend import backend_in
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import artifacts, config, new_id
from tests.plugin.examples import CREATED, candidate, status

LATER = CREATED + timedelta(days=3)


def versions(key: str, *ages_in_days: int) -> list[dict[str, Any]]:
    """Artifacts of one key, the newest first, as the API lists them."""
    return [
        {"id": f"{key}-{age}", "key": key, "created": (LATER - timedelta(days=age)).isoformat()}
        for age in ages_in_days
    ]


def test_old_versions_go_and_the_newest_stay_whatever_their_age() -> None:
    listed = versions("mipro-bot-leaderboard", 0, 1, 10, 20)
    before = LATER - timedelta(days=5)
    assert list(old_versions(listed, before, 1)) == [
        "mipro-bot-leaderboard-10",
        "mipro-bot-leaderboard-20",
    ]
    assert list(old_versions(listed, before, 3)) == ["mipro-bot-leaderboard-20"]


@pytest.mark.parametrize("key", ["mipro-bot-prompt", "sales-leaderboard", None])
def test_records_of_promotions_and_what_others_made_stay(key: str | None) -> None:
    listed = [{**each, "key": key} for each in versions(key or "", 10, 20)]
    assert not list(old_versions(listed, LATER, 1))


def test_a_session_is_in_use_while_it_serves_calls() -> None:
    frame = SensorFrameSummary(frame_id="frame_1", created_at=LATER)
    assert last_used(status(candidate(1), sensor_frames=[frame])) == LATER
    assert last_used(status(candidate(1), sensor_frames=[])) == CREATED


@flow
def publishing(key: str) -> None:
    for number in range(3):
        create_markdown_artifact(f"version {number}", key=key)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_tidies_up_and_a_trial_only_says_so(model: FakeUpstream, tmp_path: Path) -> None:
    # A backend of its own, because all sessions of a backend are tidied up.
    with backend_in(tmp_path, model) as backend:
        tidy_up(create_session.fn(config(), session_id=new_id("idle"), backend_url=backend.url))


def tidy_up(session: SessionHandle) -> None:
    key = f"mipro-{session.session_id}-champion"
    publishing(key)
    everything: dict[str, Any] = {"idle_days": 0, "artifact_days": 0, "versions_kept": 1}

    trial = clean_up(session, idle=Idle.PAUSE, trial=True, **everything)
    assert trial.paused == (session.session_id,)
    assert trial.deleted_artifacts >= 2
    assert session_status.fn(session).status is SessionState.RUNNING

    done = clean_up(session, idle=Idle.PAUSE, **everything)
    assert done.paused == (session.session_id,)
    assert session_status.fn(session).status is SessionState.PAUSED
    assert artifacts((key,))[key]["data"] == "version 2"
    assert clean_up(session, idle=Idle.PAUSE, **everything).deleted_artifacts == 0
