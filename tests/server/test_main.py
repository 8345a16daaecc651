"""`python -m prefect_mipro.server` as a real process: how it starts, refuses and stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import httpx
import pytest

from prefect_mipro.models.keys import Key
from prefect_mipro.server.services.access import digest_of, new_key
from prefect_mipro.server.store.engine import open_store
from tests.forked_server import forked
from tests.server.scripted_upstream import DONE, ScriptedUpstream, event, hang

WAIT_SECONDS = 30
COMMAND = [sys.executable, "-m", "prefect_mipro.server"]


@contextmanager
def process(folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A server that keeps its database in the folder; killed if it still runs at the end."""
    child = subprocess.Popen(
        [*COMMAND, "--port", "0", *options],
        cwd=folder,
        env={**_without_settings(), "PYTHONPATH": str(Path.cwd()), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()


@dataclass(frozen=True)
class Fork:
    """The same after its imports: see `tests/forked_server.py`."""

    process: BaseProcess
    stdout: IO[str]
    stderr: IO[str]

    def terminate(self) -> None:
        """Tell it to stop."""
        self.process.terminate()


@contextmanager
def fork(folder: Path, *options: str, **environment: str) -> Iterator[Fork]:
    """As `process`, for what a server does once it runs."""
    database = ("--database-url", f"sqlite:///{folder}/mipro.db")
    reader, writer = Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r") as stderr, reader:
        with writer:
            child = forked(
                ["--port", "0", *database, *options],
                {**_without_settings(), **environment},
                stdout=writer,
                stderr=stderr.name,
            )
        with open(os.dup(reader.fileno())) as stdout:
            try:
                yield Fork(child, stdout, stderr)
            finally:
                child.kill()
                child.join()
                child.close()


def refused(folder: Path, *options: str) -> tuple[int, list[str]]:
    """Exit code and lines of standard error of a server that does not start."""
    with fork(folder, *options) as child:
        code, out, err = ended(child)
    assert out == ""
    return code, err.splitlines()


def first_line(child: subprocess.Popen[str] | Fork) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def ended(child: subprocess.Popen[str] | Fork) -> tuple[int, str, str]:
    """Exit code and the rest of both outputs, once it has ended by itself."""
    if isinstance(child, Fork):
        child.process.join(WAIT_SECONDS)
        assert child.process.exitcode is not None
        return child.process.exitcode, child.stdout.read(), child.stderr.read()
    out, err = child.communicate(timeout=WAIT_SECONDS)
    return child.returncode, out, err


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "MIPRO" not in name}


def test_the_first_line_is_a_url_that_answers_and_the_end_of_its_input_stops_it(
    tmp_path: Path,
) -> None:
    options = ("--stop-with-stdin", "--upstream-url", "http://model.invalid/v1")
    with process(tmp_path, *options) as child:
        url = first_line(child)
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        session = httpx.post(f"{url}/api/v1/online/sessions", json=_create("s")).json()
        assert session["online_url"].startswith(f"{url}/api/mipro/v1/s.")
        code, _, err = ended(child)  # which closes the input
    assert code == 0, err
    assert (tmp_path / "mipro.db").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    # A fork has no input: without the switch that means nothing.
    with fork(tmp_path) as child:
        first_line(child)
        assert child.process.pid
        os.kill(child.process.pid, number)
        code, out, err = ended(child)
    assert (code, out) == (0, "")
    assert err.splitlines()[-1].endswith("server stopped")
    assert not list(tmp_path.glob("*.db-wal"))


def test_a_call_under_way_is_finished_before_it_stops(tmp_path: Path) -> None:
    with (
        ScriptedUpstream() as upstream,
        fork(tmp_path, "--upstream-url", upstream.url) as child,
    ):
        url = first_line(child)
        httpx.post(f"{url}/api/v1/online/sessions", json=_create("s"))
        upstream.script.append(upstream.stream(event("a"), DONE))
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        path = f"{url}/api/mipro/v1/s/r1/chat/completions"
        with httpx.stream("POST", path, json=body, timeout=WAIT_SECONDS) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == event("a")
            child.terminate()
            upstream.gate.set()
            assert b"".join(pieces) == DONE
        code, _, err = ended(child)
    assert code == 0, err


def refuses(url: str) -> bool:
    """Whether no connection is taken any more."""
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
    except ConnectionError:
        return True
    return False


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "mipro.db")) as connection:
        return list(connection.execute(query))


def test_while_it_finishes_a_call_it_takes_no_more_and_what_it_took_is_on_disk(
    tmp_path: Path,
) -> None:
    with (
        ScriptedUpstream() as upstream,
        fork(tmp_path, "--upstream-url", upstream.url) as child,
        httpx.Client(timeout=WAIT_SECONDS) as http,
    ):
        url = first_line(child)
        sessions = f"{url}/api/v1/online/sessions"
        http.post(sessions, json=_create("s"))
        path = f"{url}/api/mipro/v1/s/{{}}/chat/completions"
        body = {"messages": [{"role": "user", "content": "hi"}]}
        assert http.post(path.format("r1"), json=body).status_code == 200
        upstream.script.append(upstream.stream(event("a"), DONE))
        streamed = {**body, "stream": True}
        with http.stream("POST", path.format("r2"), json=streamed) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            reward = {"rollout_id": "r1", "reward_info": {"score": 1.0}}
            assert http.post(f"{sessions}/s/reward", json=reward).status_code == 200
            child.terminate()
            # The connection that stays open between two calls is ended, too.
            deadline = time.monotonic() + WAIT_SECONDS
            while not refuses(url):
                assert time.monotonic() < deadline
            with pytest.raises(httpx.TransportError):
                http.get(f"{url}/health")
            upstream.gate.set()
            assert b"".join(pieces) == DONE
        code, _, err = ended(child)
    assert code == 0, err
    assert rows(tmp_path, "SELECT rollout_id, status, error FROM mipro_traces") == [
        ("r1", 200, ""),
        ("r2", 200, ""),
    ]
    assert rows(tmp_path, "SELECT rollout_id, score FROM mipro_rewards") == [("r1", 1.0)]


def test_calls_that_take_too_long_are_ended_and_said_to_be(tmp_path: Path) -> None:
    options = ("--longest-stop-seconds", "1")
    with (
        ScriptedUpstream() as upstream,
        fork(tmp_path, "--upstream-url", upstream.url, *options) as child,
        ExitStack() as streams,
    ):
        url = first_line(child)
        httpx.post(f"{url}/api/v1/online/sessions", json=_create("s"))
        answers = []
        for rollout in ("r1", "r2"):
            upstream.script.append(upstream.stream(event("a"), DONE))
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
            path = f"{url}/api/mipro/v1/s/{rollout}/chat/completions"
            answer = httpx.stream("POST", path, json=body, timeout=WAIT_SECONDS)
            answers.append(streams.enter_context(answer).iter_raw())
            next(answers[-1])
        child.terminate()
        for pieces in answers:
            (said,) = [line for line in b"".join(pieces).splitlines() if line]
            assert b'data: {"error":{"message":"the server is stopping' in said
        code, _, err = ended(child)
        upstream.gate.set()
    assert code == 0, err
    assert err.count("Cancel 2 running") == 1
    assert "Traceback" not in err
    assert "hi" not in err.split()
    # They count as failed, with the tokens that they used.
    assert rows(tmp_path, "SELECT calls, failed_calls FROM mipro_candidates") == [(2, 2)]


def test_a_call_without_an_answer_yet_is_refused_when_the_stop_takes_too_long(
    tmp_path: Path,
) -> None:
    options = ("--longest-stop-seconds", "1")
    with (
        ScriptedUpstream() as upstream,
        fork(tmp_path, "--upstream-url", upstream.url, *options) as child,
        ThreadPoolExecutor() as threads,
    ):
        url = first_line(child)
        httpx.post(f"{url}/api/v1/online/sessions", json=_create("s"))
        upstream.script.append(hang)
        body = {"messages": [{"role": "user", "content": "hi"}]}
        path = f"{url}/api/mipro/v1/s/r1/chat/completions"
        call = threads.submit(httpx.post, path, json=body, timeout=WAIT_SECONDS)
        assert upstream.arrived.wait(WAIT_SECONDS)
        child.terminate()
        answer = call.result()
        code, _, err = ended(child)
    assert (code, answer.status_code) == (0, 503), err
    assert "the server is stopping" in answer.json()["error"]["message"]
    assert "Traceback" not in err


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = refused(tmp_path, "--port", str(port))
    assert code == 1
    assert lines == [
        f"python -m prefect_mipro.server: port {port} of 127.0.0.1 is in use; "
        "choose another with --port, or a free one with --port 0"
    ]


def test_an_address_of_another_machine_is_one_clear_line(tmp_path: Path) -> None:
    code, lines = refused(tmp_path, "--host", "192.0.2.1", "--api-keys", "k", "--port", "0")
    assert code == 1
    assert len(lines) == 1
    assert "192.0.2.1" in lines[0]
    assert "--host" in lines[0]


@pytest.mark.parametrize(
    "database_url", ["sqlite:///missing/folder/mipro.db", "mysql://host/name", "not a url"]
)
def test_a_database_that_cannot_be_is_one_clear_line(tmp_path: Path, database_url: str) -> None:
    code, lines = refused(tmp_path, "--port", "0", "--database-url", database_url)
    assert code == 1
    assert len(lines) == 1
    assert "database" in lines[0]


def test_a_database_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with fork(tmp_path) as child:
        first_line(child)
        code, lines = refused(tmp_path, "--port", "0")
    assert code == 1
    assert len(lines) == 1
    assert "another server" in lines[0]


def test_settings_that_are_refused_exit_with_2(tmp_path: Path) -> None:
    code, lines = refused(tmp_path, "--port", "many")
    assert code == 2
    assert len(lines) == 1
    assert "MIPRO_SERVER_PORT" in lines[0]


def test_beyond_loopback_a_key_is_demanded_that_nobody_has_revoked(tmp_path: Path) -> None:
    make_key(tmp_path, "gone", revoked=True)
    code, lines = refused(tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert len(lines) == 1
    assert "--host 0.0.0.0 opens the server to other machines" in lines[0]
    assert "MIPRO_SERVER_API_KEYS" in lines[0]
    assert "prefect-mipro keys create" in lines[0]


def test_beyond_loopback_a_key_of_the_database_will_do(tmp_path: Path) -> None:
    key = make_key(tmp_path, "ours")
    with fork(tmp_path, "--host", "0.0.0.0") as child:
        url = first_line(child)
        assert httpx.get(f"{url}/api/v1/online/sessions").status_code == 401
        answer = httpx.get(f"{url}/api/v1/online/sessions", headers={"X-API-Key": key})
        assert answer.json()["items"] == []
        child.terminate()
        _, _, err = ended(child)
    assert "api_keys=1" in err.splitlines()[0]
    assert key not in err


def test_when_all_keys_are_revoked_nobody_may_call(tmp_path: Path) -> None:
    make_key(tmp_path, "gone", revoked=True)
    with fork(tmp_path) as child:
        url = first_line(child)
        assert httpx.get(f"{url}/api/v1/online/sessions").status_code == 401
        child.terminate()
        _, _, err = ended(child)
    assert "all keys are revoked: nobody may call" in err


def test_the_log_tells_events_and_no_secrets(tmp_path: Path) -> None:
    with (
        ScriptedUpstream() as upstream,
        fork(
            tmp_path,
            "--upstream-url",
            upstream.url,
            "--log-level",
            "debug",
            MIPRO_SERVER_API_KEYS="hidden-key",
            MIPRO_SERVER_UPSTREAM_API_KEY="hidden-upstream-key",
        ) as child,
    ):
        url = first_line(child)
        bearer = {"Authorization": "Bearer hidden-key"}
        with httpx.Client(base_url=url, headers=bearer) as http:
            session = http.post("/api/v1/online/sessions", json=_create("s")).json()
            body = {"messages": [{"role": "user", "content": "hidden prompt"}]}
            assert http.post(f"{session['chat_completions_url']}", json=body).status_code == 200
        child.terminate()
        _, _, err = ended(child)
    start = err.splitlines()[0]
    assert f"info prefect_mipro.server server started url={url} " in start
    assert "api_keys=1" in start
    assert "hidden" not in err
    assert upstream.received[0].headers["authorization"] == "Bearer hidden-upstream-key"


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
def test_a_database_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "mipro.db"
    file.touch()
    file.chmod(0o644)
    with fork(tmp_path) as child:
        first_line(child)
        child.terminate()
        _, _, err = ended(child)
    assert (
        f"other users of this machine may read the database; set its mode to 600 file={file} "
        in err
    )
    assert "mode=644" in err


def test_being_open_is_said_at_the_start(tmp_path: Path) -> None:
    with fork(tmp_path) as child:
        first_line(child)
        child.terminate()
        _, _, err = ended(child)
    assert "programs on this machine may call; no other machine, no web page" in err


def test_beyond_loopback_a_missing_public_url_is_warned_of(tmp_path: Path) -> None:
    with fork(tmp_path, "--host", "0.0.0.0", MIPRO_SERVER_API_KEYS="k") as child:
        assert first_line(child).startswith("http://127.0.0.1:")
        child.terminate()
        _, _, err = ended(child)
    assert "warning" in err
    assert "MIPRO_SERVER_PUBLIC_URL" in err


def make_key(folder: Path, name: str, *, revoked: bool = False) -> str:
    """A key in the database that `process` uses."""
    key, now = new_key(), datetime.now(UTC)

    async def make() -> None:
        store = await open_store(f"sqlite+aiosqlite:///{folder}/mipro.db")
        await store.add_key(
            Key(
                key_id=f"key_{name}",
                name=name,
                workspace="default",
                digest=digest_of(key),
                created_at=now,
            )
        )
        if revoked:
            await store.revoke_key(name, at=now)
        await store.close()

    asyncio.run(make())
    return key.get_secret_value()


def _create(session_id: str) -> dict[str, object]:
    config = {"prompt_learning": {"algorithm": "mipro"}}
    return {"session_id": session_id, "config_body": config}
