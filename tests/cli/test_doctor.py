"""`doctor`: what it finds, what it says to do, and when it fails."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import requires
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_mipro.cli.checks import LOWEST_PYTHON, PREFECT, Verdict, of_python, of_schedules
from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.sessions import SessionState
from tests.cli.conftest import Command
from tests.client.backend import Answer, Backend
from tests.fake_upstream import FakeUpstream, Scripted

NOWHERE = "http://127.0.0.1:9/api"


@pytest.fixture(autouse=True)
def _no_prefect_server() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: None}):
        yield


def verdicts(command: Command, *options: str) -> dict[str, tuple[str, str, str]]:
    """Verdict, what was found and the way out, by the name of the check."""
    checks = command("doctor", "--json", *options).document["checks"]
    return {check["name"]: (check["verdict"], check["found"], check["way_out"]) for check in checks}


def test_all_is_well_with_a_backend_whose_model_answers(
    command: Command, upstream: FakeUpstream
) -> None:
    status = command.session()
    before = command.client.session_status(status.session_id).rollout_count
    result = command("doctor")
    assert result.code == ExitCode.OK
    assert result.out.splitlines()[-1] == "nothing is broken"
    found = verdicts(command)
    assert {found[name][0] for name in ("Python", "Prefect", "backend", "key", "model")} == {"ok"}
    assert status.session_id in found["model"][1]
    assert upstream.requests[-1]["messages"][-1]["content"] == "Are you there?"
    assert command.client.session_status(status.session_id).rollout_count == before
    assert command.key not in result.out + result.err


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
def test_a_database_that_others_may_read_is_a_note_with_the_way_out(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mipro.db"
    monkeypatch.setenv("MIPRO_SERVER_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("MIPRO_DATABASE_URL", "sqlite://")
    assert "database" not in verdicts(command)
    file.touch(0o600)
    assert verdicts(command)["database"][:2] == ("ok", f"{file}, private")
    file.chmod(0o644)
    verdict, found, way_out = verdicts(command)["database"]
    assert verdict == "note"
    assert f"{file} 644" in found
    assert way_out == f"chmod 600 {file}"


def test_a_database_that_this_release_cannot_open_is_broken(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mipro.db"
    monkeypatch.setenv("MIPRO_SERVER_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("MIPRO_DATABASE_URL", "sqlite://")
    command("db", "upgrade")
    assert verdicts(command)["database"][0] == "ok"
    with closing(sqlite3.connect(file)) as old, old:
        old.execute("UPDATE mipro_schema SET version_num = '0012'")
    verdict, found, way_out = verdicts(command)["database"]
    assert verdict == "broken"
    assert "development version of prefect-mipro (schema 0012)" in found
    assert "sessions export" in way_out
    assert "sessions import" in way_out


def test_what_is_only_lacking_comes_with_a_way_out_and_breaks_nothing(command: Command) -> None:
    verdict, found, way_out = verdicts(command)["Prefect API"]
    assert verdict == "note"
    assert "temporary server" in found
    assert "prefect server start" in way_out


def test_a_prefect_api_out_of_reach_is_broken(command: Command) -> None:
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        result = command("doctor")
    assert result.code == ExitCode.FAILED
    assert f"{NOWHERE} does not answer" in result.out
    assert result.out.splitlines()[-1] == "broken: Prefect API"


def test_a_prefect_api_that_refuses_us_is_broken(command: Command) -> None:
    prefect = Backend()
    prefect.answers(Answer({}), Answer(status=401), Answer(status=401))
    with temporary_settings({PREFECT_API_URL: f"{prefect.url}/api"}):
        verdict, found, way_out = verdicts(command)["Prefect API"]
    prefect.stop()
    assert verdict == "broken"
    assert found.endswith("refuses with 401")
    assert "PREFECT_API_KEY" in way_out


def test_a_key_that_is_refused_is_broken(command: Command) -> None:
    found = verdicts(command, "--api-key", "a-wrong-key")
    assert found["backend"][0] == "ok"
    assert found["key"][0] == "broken"
    assert "MIPRO_API_KEY" in found["key"][2]
    assert "a-wrong-key" not in str(found)


def test_a_backend_out_of_reach_is_broken(command: Command) -> None:
    verdict, found, way_out = verdicts(command, "--backend-url", "http://127.0.0.1:9")["backend"]
    assert verdict == "broken"
    assert "http://127.0.0.1:9" in found
    assert "prefect-mipro serve" in way_out


def test_a_model_that_refuses_is_broken_in_its_own_words(
    command: Command, upstream: FakeUpstream
) -> None:
    command.session()
    refusal = b'{"error": {"message": "no credit left", "type": "insufficient_quota"}}'
    upstream.script.append(Scripted(402, refusal))
    verdict, found, way_out = verdicts(command)["model"]
    assert verdict == "broken"
    assert "no credit left" in found
    assert "--upstream-url" in way_out


def test_without_a_running_session_no_model_is_asked(
    command: Command, backend: EmbeddedBackend
) -> None:
    with Client(backend.url, backend.api_key) as client:
        for session in client.sessions(state=SessionState.RUNNING, limit=1_000)["items"]:
            client.change_state(session["session_id"], SessionState.CANCELLED)
    verdict, found, _ = verdicts(command)["model"]
    assert verdict == "note"
    assert "no session is running" in found


def test_without_a_backend_the_embedded_one_must_work(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MIPRO_BACKEND_URL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = command("doctor")
    assert result.code == ExitCode.FAILED
    assert "the embedded model is not installed" in result.out
    assert "-> prefect-mipro model install" in result.out


def test_the_embedded_backend_is_tried_for_real(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_BACKEND_URL")
    found = verdicts(command)
    assert found["embedded model"][0] == "ok"
    assert found["embedded backend"][0] == "ok"
    assert "its model answers" in found["embedded backend"][1]


def test_a_missing_part_of_the_server_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_BACKEND_URL")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    verdict, found, way_out = verdicts(command)["embedded backend"]
    assert verdict == "broken"
    assert "aiohttp not installed" in found
    assert "pip install 'prefect-mipro[server]'" in way_out


def test_an_old_python_is_broken() -> None:
    check = of_python((3, 10, 14))
    assert check.verdict == "broken"
    assert "3.11" in check.way_out


def test_its_bounds_are_those_of_the_package() -> None:
    assert PREFECT.replace(">=3.8.1,<4", "<4,>=3.8.1") in (requires("prefect-mipro") or [])
    assert LOWEST_PYTHON == (3, 11)


@pytest.mark.parametrize(
    ("prefect", "sqlalchemy", "notes"),
    [("3.8.8", "2.1.9", 1), ("3.8.8", "2.0.58", 0), ("3.9.1", "2.1.9", 0)],
)
def test_a_server_that_plans_no_run_is_named(prefect: str, sqlalchemy: str, notes: int) -> None:
    found = list(of_schedules(prefect, sqlalchemy))
    assert [check.verdict for check in found] == [Verdict.NOTE] * notes
    assert all("'sqlalchemy<2.1'" in check.way_out for check in found)
