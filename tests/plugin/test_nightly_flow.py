"""The nightly data flow: labels by night, corrections by day, rewards the next night."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flows.nightly_data_flow import INTENTS, label_messages, make_sample
from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import new_id

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("prefect_server")]

DATA = Path(__file__).parents[2] / "flows" / "data" / "everyday_intents.jsonl"


def confident_model(body: dict[str, Any]) -> str:
    text = body["messages"][-1]["content"]
    return "I cannot help with that." if "rain" in text else "Music, of course."


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    folder = tmp_path_factory.mktemp("nightly")
    with FakeUpstream(confident_model) as upstream:
        providers = json.dumps({"embedded": {"base_url": upstream.url}})
        with EmbeddedBackend(
            database_url=f"sqlite:///{folder / 'mipro.db'}",
            log_path=folder / "server.log",
            environment={"MIPRO_SERVER_PROVIDERS": providers},
        ) as running:
            yield running


@pytest.fixture
def night(
    backend: EmbeddedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str, Client]]:
    """A database full of messages, a session of its own, and a look at the backend."""
    monkeypatch.setenv("MIPRO_BACKEND_URL", backend.url)
    database = tmp_path / "messages.db"
    make_sample(database)
    with Client(backend.url, backend.api_key) as client:
        yield database, new_id("nightly"), client


def read(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_new_messages_get_a_label_and_the_rollout_that_made_it(
    night: tuple[Path, str, Client],
) -> None:
    database, session_id, client = night
    told = label_messages(database, 10, session_id)
    assert told == {"rewarded": 0, "labelled": 10, "failed": 0}
    rows = read(database, "SELECT intent, rollout_id FROM messages WHERE intent IS NOT NULL")
    assert len({rollout_id for _, rollout_id in rows}) == 10
    assert {intent for intent, _ in rows} <= {*INTENTS, "unclear"}
    status = client.session_status(session_id)
    assert (status.rollout_count, status.reward_count) == (10, 0)


def test_corrections_of_the_day_are_rewards_of_the_next_night(
    night: tuple[Path, str, Client],
) -> None:
    database, session_id, client = night
    label_messages(database, 10, session_id)
    make_sample(database)  # by day, people check the labels
    assert label_messages(database, 5, session_id)["rewarded"] == 10
    status = client.session_status(session_id)
    assert (status.rollout_count, status.reward_count) == (15, 10)
    right = read(database, "SELECT count(*) FROM messages WHERE intent = checked_intent")[0][0]
    baseline = status.candidates[status.baseline_candidate_id]
    assert baseline.avg_reward == pytest.approx(right / 10)


def test_a_correction_is_a_reward_once(night: tuple[Path, str, Client]) -> None:
    database, session_id, client = night
    label_messages(database, 4, session_id)
    make_sample(database)
    told = [label_messages(database, 0, session_id)["rewarded"] for _ in range(2)]
    assert told == [4, 0]
    assert client.session_status(session_id).reward_count == 4


def test_the_intents_are_those_of_the_data() -> None:
    labels = {json.loads(line)["label"] for line in DATA.read_text("utf-8").splitlines()}
    assert labels == set(INTENTS)
