"""`sessions import`: an export, in another backend."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.sessions import SessionState
from tests.cli.conftest import Command
from tests.embedded_backend import backend_in
from tests.fake_upstream import FakeUpstream


@pytest.fixture(scope="module")
def other(
    upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedBackend]:
    """A backend that has none of the sessions."""
    folder = tmp_path_factory.mktemp("other")
    with backend_in(folder, upstream) as running:
        yield running


def address(backend: EmbeddedBackend) -> list[str]:
    return ["--backend-url", backend.url, "--api-key", backend.api_key.get_secret_value()]


@pytest.fixture
def exported(command: Command, tmp_path: Path) -> Path:
    """A session with three rollouts, of which two are rewarded, as a file."""
    status = command.session(rollouts=3)
    file = tmp_path / f"{status.session_id}.jsonl.gz"
    command("sessions", "export", status.session_id, "-o", str(file))
    return file


def test_a_session_has_in_the_other_backend_what_it_has_learned(
    command: Command, other: EmbeddedBackend, exported: Path
) -> None:
    session_id = exported.name.removesuffix(".jsonl.gz")
    result = command("sessions", "import", str(exported), *address(other))
    assert result.code == ExitCode.OK, result.err
    assert result.out.startswith(f"{session_id} is here, and paused: ")
    before = command.client.session_status(session_id)
    with Client(other.url, other.api_key) as client:
        after = client.session_status(session_id)
        assert after.status is SessionState.PAUSED
        assert after.candidates == before.candidates
        assert (after.rollout_count, after.reward_count) == (3, 2)
        assert after.online_url.rpartition(".")[2] != before.online_url.rpartition(".")[2]
    assert command("sessions", "resume", session_id, *address(other)).code == ExitCode.OK


def test_it_reads_standard_input(
    command: Command, other: EmbeddedBackend, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.BytesIO(gzip.decompress(exported.read_bytes()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
    found = command("sessions", "import", "-", "--json", *address(other)).document
    assert found["state"] == "paused"


def test_a_session_that_is_there_is_left_alone(command: Command, exported: Path) -> None:
    result = command("sessions", "import", str(exported))
    assert (result.code, result.out) == (ExitCode.FAILED, "")
    assert "is here already" in result.err


def test_a_file_that_was_cut_off_is_not_taken_for_whole(
    command: Command, other: EmbeddedBackend, exported: Path
) -> None:
    lines = gzip.decompress(exported.read_bytes()).splitlines(keepends=True)
    cut = exported.with_name("cut.jsonl")
    cut.write_bytes(b"".join(lines[:-1]))
    result = command("sessions", "import", str(cut), *address(other))
    assert result.code == ExitCode.USAGE
    assert "ends before its last line" in result.err
    # And the whole one goes on from there.
    assert command("sessions", "import", str(exported), *address(other)).code == ExitCode.OK


def test_a_file_that_lacks_a_line_is_refused(
    command: Command, other: EmbeddedBackend, exported: Path
) -> None:
    lines = gzip.decompress(exported.read_bytes()).splitlines(keepends=True)
    lacking = exported.with_name("lacking.jsonl")
    lacking.write_bytes(b"".join(line for line in lines if b'"part":"reward"' not in line))
    result = command("sessions", "import", str(lacking), *address(other))
    assert result.code == ExitCode.FAILED
    assert "of the 2 lines of reward 0 are here" in result.err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "ends before its last line"),
        (b"nonsense\n", "line 1 of"),
        (b'{"part": "rollout"}\n', "is no export of a session"),
        (None, "cannot read"),
    ],
)
def test_what_is_no_export_is_wrong_usage(
    command: Command, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "file.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = command("sessions", "import", str(file))
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert problem in result.err
    assert str(file) in result.err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 99}, "version 99"),
        ({"state": "asleep"}, "state"),
        ({"config": {"prompt_learning": {"algorithm": "gepa"}}}, "algorithm"),
    ],
)
def test_a_session_that_the_backend_cannot_hold_is_refused(
    command: Command, exported: Path, changes: dict[str, object], problem: str
) -> None:
    first, *rest = gzip.decompress(exported.read_bytes()).splitlines(keepends=True)
    odd = exported.with_name("odd.jsonl")
    odd.write_bytes(
        b"".join([json.dumps({**json.loads(first), **changes}).encode() + b"\n", *rest])
    )
    result = command("sessions", "import", str(odd))
    assert result.code == ExitCode.USAGE
    assert problem in result.err
