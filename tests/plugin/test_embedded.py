"""The embedded backend: a real child process, started, asked, and gone again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend, default_database_url, running_backend
from prefect_mipro.errors import BackendFailed, KeyRejected
from prefect_mipro.models.sessions import CreateSession

CONFIG = {"prompt_learning": {"algorithm": "mipro", "policy": {"provider": "embedded"}}}


def backend_in(folder: Path) -> EmbeddedBackend:
    return EmbeddedBackend(
        database_url=f"sqlite:///{folder / 'deep' / 'mipro.db'}", log_path=folder / "server.log"
    )


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def gone_within(process_id: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(process_id)


def test_it_serves_those_who_have_its_key_and_is_gone_after_the_block(tmp_path: Path) -> None:
    with backend_in(tmp_path) as backend:
        process_id = backend.process_id
        assert process_id
        assert running_backend(backend.url) is backend
        with Client(backend.url, backend.api_key) as client:
            assert client.sessions()["items"] == []
        with Client(backend.url) as stranger, pytest.raises(KeyRejected):
            stranger.sessions()
        url = backend.url
    assert not alive(process_id)
    assert running_backend(url) is None
    assert backend.url == ""


def test_a_later_backend_finds_the_sessions_of_an_earlier_one(tmp_path: Path) -> None:
    with backend_in(tmp_path) as backend, Client(backend.url, backend.api_key) as client:
        client.create_session(CreateSession(session_id="bot", config_body=CONFIG))
    with backend_in(tmp_path) as backend, Client(backend.url, backend.api_key) as client:
        assert client.session_status("bot").session_id == "bot"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_block_ends_it(tmp_path: Path, error: type[BaseException]) -> None:
    seen: list[int] = []

    def interrupted() -> None:
        with backend_in(tmp_path) as backend:
            assert backend.process_id
            seen.append(backend.process_id)
            raise error

    with pytest.raises(error):
        interrupted()
    assert not alive(seen[0])


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from prefect_mipro.embedded import EmbeddedBackend\n"
        "folder = Path(sys.argv[1])\n"
        "with EmbeddedBackend(\n"
        "    database_url=f'sqlite:///{folder}/mipro.db', log_path=folder / 'server.log'\n"
        ") as backend:\n"
        "    print(backend.process_id, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        process_id = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone_within(process_id, 20)


def test_stopping_twice_is_once(tmp_path: Path) -> None:
    backend = backend_in(tmp_path)
    backend.start()
    backend.stop()
    backend.stop()
    assert backend.process_id is None


def test_a_backend_that_hangs_is_killed(tmp_path: Path) -> None:
    backend = EmbeddedBackend(
        database_url=f"sqlite:///{tmp_path}/mipro.db",
        log_path=tmp_path / "server.log",
        stop_timeout_seconds=0.2,
    )
    with backend:
        process_id = backend.process_id
        assert process_id
        os.kill(process_id, signal.SIGSTOP)
    assert not alive(process_id)


def test_a_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    backend = EmbeddedBackend(database_url="mysql://nowhere/x", log_path=tmp_path / "server.log")
    with pytest.raises(BackendFailed, match=r"exit code 1(.|\n)*unknown driver 'mysql'"):
        backend.start()
    assert backend.process_id is None


def test_an_old_log_is_not_taken_for_the_reason(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("an old catastrophe\n")
    backend = EmbeddedBackend(database_url="mysql://nowhere/x", log_path=tmp_path / "server.log")
    with pytest.raises(BackendFailed) as failure:
        backend.start()
    assert "catastrophe" not in str(failure.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = EmbeddedBackend(
        database_url=f"sqlite:///{tmp_path}/file/mipro.db", log_path=tmp_path / "server.log"
    )
    with pytest.raises(BackendFailed, match=r"file.*XDG_DATA_HOME"):
        backend.start()


def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    backend = EmbeddedBackend(
        database_url=f"sqlite:///{tmp_path}/mipro.db",
        log_path=tmp_path / "server.log",
        start_timeout_seconds=0.01,
    )
    with pytest.raises(BackendFailed, match="in time"):
        backend.start()
    assert backend.process_id is None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    with backend_in(tmp_path_factory.mktemp("embedded")) as backend:
        yield backend


def test_neither_key_nor_database_are_on_the_command_line(running: EmbeddedBackend) -> None:
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(running.process_id)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "prefect_mipro.server" in shown
    assert running.api_key.get_secret_value() not in shown
    assert "mipro.db" not in shown


def test_the_key_is_not_in_the_log(running: EmbeddedBackend) -> None:
    assert running.api_key.get_secret_value() not in running.log_path.read_text()


def test_the_log_is_for_its_user_only(running: EmbeddedBackend) -> None:
    assert running.log_path.stat().st_mode & 0o077 == 0


def test_proxy_settings_of_the_environment_do_not_keep_it_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with backend_in(tmp_path) as backend:
        health = httpx.get(f"{backend.url}/health", trust_env=False)
        assert health.status_code == 200


def test_its_key_is_an_argument_for_commands(tmp_path: Path) -> None:
    """A key that begins with a dash would be taken for an option."""
    keys = {backend_in(tmp_path).api_key.get_secret_value() for _ in range(200)}
    assert len(keys) == 200
    assert all(key.isalnum() for key in keys)


def test_the_key_can_be_chosen_for_processes_that_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPRO_API_KEY", "chosen-key")
    assert backend_in(tmp_path).api_key.get_secret_value() == "chosen-key"


def test_sessions_are_kept_in_the_data_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_DATABASE_URL", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_database_url() == f"sqlite:///{tmp_path}/prefect-mipro/mipro.db"


def test_the_database_can_be_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPRO_DATABASE_URL", "postgresql://db/mipro")
    assert default_database_url() == "postgresql://db/mipro"
