"""The nightly data flow: labels by night, corrections by day, rewards in the evening."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.nightly_data_flow import (
    INTENTS,
    check_labels,
    label_messages,
    load_corrections,
    make_sample,
    report_labels,
    truths,
)
from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.sessions import SessionStatus
from tests.fake_upstream import FakeUpstream, Scripted
from tests.plugin.conftest import new_id

pytestmark = pytest.mark.usefixtures("prefect_server")


def confident_model(body: dict[str, Any]) -> str:
    text = body["messages"][-1]["content"]
    return "I cannot help with that." if "rain" in text else "Music, of course."


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(confident_model) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def backend(
    upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedBackend]:
    folder = tmp_path_factory.mktemp("nightly")
    providers = json.dumps({"embedded": {"base_url": upstream.url}})
    with EmbeddedBackend(
        database_url=f"sqlite:///{folder / 'mipro.db'}",
        log_path=folder / "server.log",
        environment={"MIPRO_SERVER_PROVIDERS": providers},
    ) as running:
        yield running


@dataclass(frozen=True)
class Pipeline:
    """A database full of messages, a session of its own, and a look at the backend."""

    folder: Path
    session_id: str
    client: Client

    @property
    def database(self) -> Path:
        return self.folder / "messages.db"

    @property
    def corrections(self) -> Path:
        return self.folder / "corrections.csv"

    def label(self, limit: int) -> dict[str, int]:
        return label_messages(self.database, limit, session_id=self.session_id)

    def report(self) -> dict[str, int]:
        return report_labels(self.database, self.corrections, session_id=self.session_id)

    def read(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(query).fetchall()

    @property
    def status(self) -> SessionStatus:
        return self.client.session_status(self.session_id)


@pytest.fixture
def pipeline(
    backend: EmbeddedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    monkeypatch.setenv("MIPRO_BACKEND_URL", backend.url)
    with Client(backend.url, backend.api_key) as client:
        made = Pipeline(tmp_path, new_id("nightly"), client)
        make_sample(made.database)
        yield made


def test_new_messages_get_a_label_and_the_rollout_that_made_it(pipeline: Pipeline) -> None:
    assert pipeline.label(6) == {"labelled": 6, "failed": 0}
    rows = pipeline.read("SELECT intent, rollout_id FROM messages WHERE intent IS NOT NULL")
    assert [rollout_id for _, rollout_id in rows] == [f"message-{n}" for n in range(1, 7)]
    assert {intent for intent, _ in rows} <= {*INTENTS, "unclear"}
    assert (pipeline.status.rollout_count, pipeline.status.reward_count) == (6, 0)


def test_corrections_of_the_day_are_rewards_in_the_evening_and_count_once(
    pipeline: Pipeline,
) -> None:
    pipeline.label(6)
    check_labels(pipeline.database, pipeline.corrections)
    told = [pipeline.report() for _ in range(2)]
    assert [each["accepted"] for each in told] == [6, 0]
    right = pipeline.read(
        "SELECT count(*) FROM messages JOIN corrections ON id = message_id "
        "WHERE messages.intent = corrections.intent"
    )[0][0]
    status = pipeline.status
    assert (status.rollout_count, status.reward_count) == (6, 6)
    baseline = status.candidates[status.baseline_candidate_id]
    assert baseline.avg_reward == pytest.approx(right / 6)


def test_a_run_that_was_killed_before_it_wrote_anything_back_repeats_no_rollout(
    pipeline: Pipeline,
) -> None:
    pipeline.label(3)
    with closing(sqlite3.connect(pipeline.database)) as connection, connection:
        connection.execute("UPDATE messages SET intent = NULL, rollout_id = NULL")
    assert pipeline.label(3) == {"labelled": 3, "failed": 0}
    assert pipeline.status.rollout_count == 3


def test_a_message_that_the_model_fails_on_waits_for_the_next_night(
    pipeline: Pipeline, upstream: FakeUpstream
) -> None:
    upstream.script.append(Scripted(status=400, body=b'{"error": {"message": "refused"}}'))
    assert pipeline.label(3) == {"labelled": 2, "failed": 1}
    assert pipeline.label(1) == {"labelled": 1, "failed": 0}


def test_a_file_of_corrections_without_its_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text("id,label\n1,music\n")
    with pytest.raises(InputInvalid, match=r"has the columns id, label; corrections have message"):
        load_corrections.fn(tmp_path / "messages.db", path)


def test_an_evening_before_anybody_has_corrected_anything_reports_nothing(
    pipeline: Pipeline,
) -> None:
    pipeline.label(3)
    assert not pipeline.corrections.exists()
    assert set(pipeline.report().values()) == {0}


def test_a_file_of_corrections_that_is_not_there_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_corrections.fn(tmp_path / "messages.db", tmp_path / "corrections.csv")
    (record,) = caplog.records
    assert f"there is no file {tmp_path / 'corrections.csv'}" in record.getMessage()


def test_the_intents_are_those_of_the_data() -> None:
    assert {*truths().values()} == {*INTENTS}
