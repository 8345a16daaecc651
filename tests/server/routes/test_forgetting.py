"""Forgetting over HTTP: of the texts nothing is left, the counters stay, and calls go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_mipro.models.sessions import ForgetSubject
from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import compact, inspected
from prefect_mipro.server.store.upkeep import ForgetOrder
from tests.fake_upstream import FakeUpstream, better_with_demonstrations
from tests.server.live import LiveServer
from tests.server.routes.conftest import CONFIG, KEY, SESSIONS, chat_path

SECRET = "the heron of Quiet Harbour"
# Who says it. Neither name is part of the other.
ALICE, BOB = "alice-of-the-tests", "bob-of-the-tests"
ROLLOUTS = 24
ALLOWED = {"prompt_learning.mipro.demonstrations.from_traffic": "allowed"}
async def test_each_subject_takes_its_own_rollouts_and_no_others(
    lived: Lived, file: Path, wanted: dict[str, str], rollouts: list[str]
) -> None:
    assert lived.forget(**wanted)["rollouts"] == len(rollouts)
    left = {
        line["rollout_id"]
        for line in map(json.loads, lived.http.get(f"{lived.path}/export").text.splitlines())
        if "example_trace_id" in line
    }
    assert {f"r{number}" for number in range(ROLLOUTS)} - left == set(rollouts)
    assert lived.forget(**wanted)["rollouts"] == 0
    assert await faults(file) == []


@pytest.mark.parametrize("removed", [[], ["r0", "r4"]])
async def test_a_request_that_is_broken_off_is_carried_out_later(
    lived: Lived, file: Path, removed: list[str]
) -> None:
    store, forgetting = lived.backend.forgetting._store, lived.backend.forgetting
    at = datetime(2026, 1, 1, tzinfo=UTC)
    order = ForgetOrder("forget_1", "s", ForgetSubject.USER, ALICE, requested_at=at)
    lived.server.run(store.begin_forgetting(order))
    lived.server.run(store.remove_rollouts(order, removed, at=at))
    assert await faults(file) == []
    lived.server.run(forgetting.finish())
    require_nothing_of(ALICE, lived)
    event = lived.http.get(f"{lived.path}/events").json()["events"][-1]
    assert (event["event_type"], event["data"]["rollouts"]) == (
        "mipro.session.forgotten",
        ROLLOUTS // 4,
    )
    assert lived.server.run(store.begun_forgettings()) == ()
    assert await faults(file) == []


@pytest.mark.parametrize("wanted", [{}, {"user": "a", "rollout_id": "b"}, {"user": ""}])
def test_a_request_names_exactly_one_subject(lived: Lived, wanted: dict[str, str]) -> None:
    answer = lived.http.post(f"{lived.path}/forget", json=wanted)
    assert answer.status_code == 422
