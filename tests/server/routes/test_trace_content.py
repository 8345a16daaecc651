"""A server that keeps no texts: what it learns of prompts and answers is found nowhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_mipro.config import TraceContent
from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from tests.server.live import LiveServer
from tests.server.routes.conftest import CONFIG, SESSIONS, Caller
from tests.server.scripted_upstream import ScriptedUpstream

SAID = "planted words"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "mipro.db"


@pytest.fixture
def caller(database: Path) -> Iterator[Caller]:
    with ScriptedUpstream() as upstream:
        settings = ServerSettings(
            database_url=f"sqlite:///{database}",
            upstream_url=upstream.url,
            trace_content=TraceContent.OFF,
        )
        with (
            LiveServer(create_app(settings)) as server,
            httpx.Client(base_url=server.url, timeout=20) as http,
        ):
            yield Caller(server.url, http, http, upstream, itertools.count())


def speak(caller: Caller, session: dict[str, Any]) -> None:
    """A call, a call that was made elsewhere, one that fails, and a reward: all with the words."""
    path = f"{SESSIONS}/{session['session_id']}"
    said = {"messages": [{"role": "user", "content": SAID}]}
    caller.chat(session, "r1", **said)
    caller.upstream.script.append(lambda connection: connection.answer(SAID.encode()))
    assert caller.chat(session, "r2", **said).status_code == 502
    posted = {**said, "output": SAID, "latency_seconds": 0.5, "trace_id": "t1"}
    for status in (201, 200):
        answer = caller.http.post(f"{path}/rollouts/r1/traces", json=posted)
        assert answer.status_code == status, answer.text
    reward = {
        "rollout_id": "r1",
        "reward_info": {"score": 1.0, "feedback": SAID},
        "artifact": {"text": SAID},
        "metadata": {"expected": SAID},
    }
    assert caller.http.post(f"{path}/reward", json=reward).status_code == 200


def test_the_words_are_in_no_answer_and_in_no_file(caller: Caller, database: Path) -> None:
    session = caller.session()
    speak(caller, session)
    path = f"{SESSIONS}/{session['session_id']}"
    for asked in (path, f"{path}/export", f"{path}/events"):
        answer = caller.http.get(asked)
        assert answer.status_code == 200
        assert SAID not in answer.text
    for file in database.parent.iterdir():
        assert SAID.encode() not in file.read_bytes()


def test_what_is_counted_is_counted_all_the_same(caller: Caller) -> None:
    session = caller.session()
    speak(caller, session)
    status = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
    baseline = status["candidates"][session["baseline_candidate_id"]]
    assert (status["rollout_count"], status["reward_count"]) == (2, 1)
    assert baseline["failed_calls"] == 1
    assert status["spending"]["prompt_tokens"] > 0


def test_the_status_says_what_is_lost(caller: Caller) -> None:
    (warning,) = caller.session()["warnings"]
    assert "trace_content is 'off'" in warning


def test_a_session_cannot_ask_for_more_than_the_server_keeps(caller: Caller) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["prompt_learning"]["mipro"]["trace_content"] = "full"
    session = caller.session(config_body=config)
    speak(caller, session)
    exported = caller.http.get(f"{SESSIONS}/{session['session_id']}/export").text
    assert SAID not in exported
