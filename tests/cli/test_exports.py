"""`sessions export`: whole or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_mipro.cli.exits import ExitCode
from tests.cli.conftest import QUESTION, Command
from tests.client.backend import Answer, Backend


@pytest.fixture
def cut_off() -> Iterator[Backend]:
    """A backend whose export lacks its end."""
    backend = Backend()
    backend.answers(Answer(b'{"part":"session"}\n{"part":"rollout"}\n'))
    yield backend
    backend.stop()


def test_lines_go_to_standard_output(command: Command) -> None:
    session_id = command.session(rollouts=2).session_id
    lines = [
        json.loads(line) for line in command("sessions", "export", session_id).out.splitlines()
    ]
    assert lines[0]["session_id"] == session_id
    assert lines[-1]["lines"]["trace"] == 2
    assert QUESTION in str(lines)


@pytest.mark.parametrize("name", ["bot.jsonl", "bot.jsonl.gz"])
def test_a_file_is_told_of_and_is_the_owners_alone(
    command: Command, tmp_path: Path, name: str
) -> None:
    session_id = command.session(rollouts=2).session_id
    file = tmp_path / name
    result = command("sessions", "export", session_id, "-o", str(file), "--no-traces")
    assert (result.code, result.out) == (ExitCode.OK, "")
    assert f"wrote {file}" in result.err
    assert file.stat().st_mode & 0o777 == 0o600
    text = gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["lines"]["rollout"] == 2
    assert QUESTION.encode() not in text


def test_a_document_tells_what_was_written(command: Command, tmp_path: Path) -> None:
    session_id = command.session(rollouts=1).session_id
    file = tmp_path / "bot.jsonl"
    found = command("sessions", "export", session_id, "-o", str(file), "--json").document
    assert found["path"] == str(file)
    assert found["size_bytes"] == file.stat().st_size
    assert found["lines"]["session"] == 1


def test_documents_of_two_kinds_are_not_mixed(command: Command) -> None:
    result = command("sessions", "export", command.session().session_id, "--json")
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert "--output" in result.err


def test_an_export_that_is_cut_off_leaves_the_file_that_was_there(
    command: Command, cut_off: Backend, tmp_path: Path
) -> None:
    file = tmp_path / "bot.jsonl"
    file.write_text("the export of yesterday")
    result = command("sessions", "export", "bot", "-o", str(file), "--backend-url", cut_off.url)
    assert result.code == ExitCode.UNREACHABLE
    assert "cut off" in result.err
    assert file.read_text() == "the export of yesterday"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_named(command: Command, tmp_path: Path) -> None:
    session_id = command.session().session_id
    file = tmp_path / "no-such-folder" / "bot.jsonl"
    result = command("sessions", "export", session_id, "-o", str(file))
    assert result.code == ExitCode.USAGE
    assert str(file) in result.err
