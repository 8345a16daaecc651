"""`prefect-mipro db`: on the database of a running server, and on old, broken and missing ones."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import Conflict
from prefect_mipro.server.store.files import copy_file
from tests.cli.conftest import Command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mipro.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


def test_a_running_servers_database_is_checked_and_is_whole(
    command: Command, backend: EmbeddedBackend
) -> None:
    command.session(rollouts=3)
    result = command("db", "check", "--database-url", backend.database_url)
    assert result.code == ExitCode.OK, result.out
    assert {line.split()[0] for line in result.out.splitlines()} == {"ok"}


def test_a_copy_made_while_the_server_runs_is_whole_and_private(
    command: Command, backend: EmbeddedBackend, tmp_path: Path
) -> None:
    session_id = command.session(rollouts=3).session_id
    target = tmp_path / "copy.db"
    result = command("db", "backup", str(target), "--database-url", backend.database_url)
    assert result.code == ExitCode.OK
    assert "it holds secrets" in result.err
    assert target.stat().st_mode & 0o077 == 0
    assert [file.name for file in tmp_path.iterdir()] == ["copy.db"]
    with closing(sqlite3.connect(target)) as copy:
        query = "SELECT rollouts, rewards FROM mipro_sessions WHERE session_id = ?"
        assert copy.execute(query, (session_id,)).fetchone() == (3, 2)
    assert command("db", "check", "--database-url", f"sqlite:///{target}").code == ExitCode.OK


def back_up(source: Path, target: Path, begun: Event) -> None:
    """A backup, and the moment at which it opens the source."""
    sys.addaudithook(lambda event, _: begun.set() if event == "sqlite3.connect" else None)
    copy_file(source, target)


def test_what_a_killed_backup_left_is_removed_by_the_next(tmp_path: Path) -> None:
    source, folder = tmp_path / "mipro.db", tmp_path / "backups"
    folder.mkdir()
    other = folder / "download.partial"
    other.touch()
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE kept (value)")
        writer.execute("BEGIN EXCLUSIVE")  # so that the first backup waits
        spawning = get_context("spawn")
        begun = spawning.Event()
        backup = spawning.Process(target=back_up, args=(source, folder / "first.db", begun))
        backup.start()
        assert begun.wait(60)
        (partial,) = set(folder.iterdir()) - {other}
        partial.with_name(f"{partial.name}-journal").touch()
        small = tmp_path / "small.db"
        small.touch()
        copy_file(small, folder / "second.db")
        assert partial.exists()
        with pytest.raises(Conflict, match="another backup is writing"):
            copy_file(small, folder / "first.db")
        backup.kill()
        backup.join()
        assert partial.exists()
    copy_file(source, folder / "third.db")
    assert {file.name for file in folder.iterdir()} == {"download.partial", "second.db", "third.db"}


def test_a_copy_takes_the_place_of_nothing(command: Command, file: Path, url: str) -> None:
    command("db", "upgrade", "--database-url", url)
    before = file.read_bytes()
    result = command("db", "backup", str(file), "--database-url", url)
    assert result.code == ExitCode.FAILED
    assert "is there already" in result.err
    assert file.read_bytes() == before


@pytest.mark.parametrize("arguments", [["check"], ["compact"], ["backup", "copy.db"]])
def test_a_database_that_is_not_there_is_not_made(
    command: Command, file: Path, url: str, arguments: list[str]
) -> None:
    result = command("db", *arguments, "--database-url", url)
    assert result.code == ExitCode.FAILED
    assert "there is no database" in result.err
    assert not file.exists()


def test_a_database_of_a_development_version_is_refused_with_the_way_out(
    command: Command, file: Path, url: str
) -> None:
    command("db", "upgrade", "--database-url", url)
    with closing(sqlite3.connect(file)) as old, old:
        old.execute("UPDATE mipro_schema SET version_num = '0012'")
    before = file.read_bytes()
    for action in ("upgrade", "check"):
        result = command("db", action, "--database-url", url)
        assert result.code == ExitCode.FAILED
        assert "sessions export" in result.err
        assert "sessions import" in result.err
    assert file.read_bytes() == before


def test_a_file_without_a_schema_is_told_apart_and_gets_one(
    command: Command, file: Path, url: str
) -> None:
    file.touch()
    before = command("db", "check", "--database-url", url)
    assert before.code == ExitCode.FAILED
    assert "db upgrade" in before.out
    assert command("db", "upgrade", "--database-url", url).code == ExitCode.OK
    assert command("db", "check", "--database-url", url).code == ExitCode.OK


def test_a_database_that_was_emptied_is_compacted_and_gives_its_space_back_from_now_on(
    command: Command, file: Path, url: str
) -> None:
    with closing(sqlite3.connect(file)) as old:  # as one that SQLite made by its own defaults
        old.execute("PRAGMA auto_vacuum = NONE")
        old.execute("CREATE TABLE large AS SELECT zeroblob(5000000) AS zeros")
        old.execute("DROP TABLE large")
    command("db", "upgrade", "--database-url", url)
    told = command("db", "compact", "--database-url", url, "--json").document
    assert told["bytes_before"] > 5_000_000
    assert told["bytes_after"] == file.stat().st_size < 1_000_000
    with closing(sqlite3.connect(file)) as compacted:
        assert compacted.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert command("db", "check", "--database-url", url).code == ExitCode.OK


@pytest.mark.parametrize("action", ["upgrade", "compact"])
def test_a_database_in_use_is_left_alone(
    command: Command, backend: EmbeddedBackend, action: str
) -> None:
    result = command("db", action, "--database-url", backend.database_url)
    assert result.code == ExitCode.FAILED
    assert "another server has the database" in result.err


def test_a_fault_is_told_with_the_way_out_and_the_exit_code(
    command: Command, file: Path, url: str
) -> None:
    command("db", "upgrade", "--database-url", url)
    with closing(sqlite3.connect(file)) as spoiled, spoiled:
        spoiled.execute(
            "INSERT INTO mipro_lever_versions VALUES ('s', 'instruction', 2, '{}', NULL, '{}', 0)"
        )
    shown = command("db", "check", "--database-url", url)
    assert shown.code == ExitCode.FAILED
    assert "restore a backup" in shown.out
    told = command("db", "check", "--database-url", url, "--json")
    assert told.code == ExitCode.FAILED
    assert told.document["ok"] is False
    assert {check["name"] for check in told.document["checks"] if check["problems"]} == {
        "references",
        "numbers of lever versions",
    }


def test_the_way_to_compact_a_postgresql_is_told_without_its_password(command: Command) -> None:
    url = "postgresql://mipro:hidden@db.lan:5433/prompts"
    result = command("db", "compact", "--database-url", url)
    assert result.code == ExitCode.FAILED
    assert result.out.startswith("psql --dbname=postgresql://mipro@db.lan:5433/prompts ")
    assert "VACUUM (FULL, ANALYZE) mipro_candidates, " in result.out
    assert "hidden" not in result.out + result.err


def test_the_way_to_copy_a_postgresql_is_told_without_its_password(command: Command) -> None:
    url = "postgresql://mipro:hidden@db.lan:5433/prompts?sslmode=require&password=hidden"
    result = command("db", "backup", "copy.dump", "--database-url", url)
    assert result.code == ExitCode.FAILED
    assert result.out.startswith("pg_dump --format=custom --file=copy.dump ")
    assert "postgresql://mipro@db.lan:5433/prompts?sslmode=require" in result.out
    assert "hidden" not in result.out + result.err


def test_a_file_of_another_kind_is_one_clear_line(command: Command, file: Path, url: str) -> None:
    file.write_bytes(b"no database" * 1_000)
    result = command("db", "check", "--database-url", url)
    assert result.code == ExitCode.FAILED
    assert "not a database" in result.err
