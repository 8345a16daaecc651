"""Keys are made, listed and revoked in the database, also beside a server that has it open."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from prefect_mipro.cli import main
from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.server.services.access import digest_of
from tests.cli.conftest import CONFIG, Result
from tests.server.test_main import WAIT_SECONDS, first_line, process

SESSIONS = "/api/v1/online/sessions"
KEY = re.compile(r"mipro_[0-9a-f]{64}")

Keys = Callable[..., Result]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the commands of a test work on: it is not there yet."""
    file = tmp_path / "mipro.db"
    monkeypatch.setenv("MIPRO_SERVER_DATABASE_URL", f"sqlite:///{file}")
    return file


@pytest.fixture
def keys(database: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    def run(*arguments: str) -> Result:
        code = main(["keys", *arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def answered(url: str, key: str, **body: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    if body:
        return httpx.post(f"{url}{SESSIONS}", headers=headers, json=body, trust_env=False)
    return httpx.get(f"{url}{SESSIONS}", headers=headers, trust_env=False)


def test_a_key_is_printed_once_and_only_its_digest_is_kept(keys: Keys, database: Path) -> None:
    made = keys("create", "ci")
    key = made.out.strip()
    assert made.code == ExitCode.OK
    assert KEY.fullmatch(key)
    assert "shown this once" in made.err
    assert key not in made.err
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name, workspace, digest FROM mipro_keys").fetchall()
    assert rows == [("ci", "default", digest_of(SecretStr(key)))]
    assert key.encode() not in b"".join(file.read_bytes() for file in database.parent.iterdir())


def test_a_list_tells_all_but_keys_and_digests(keys: Keys) -> None:
    key = keys("create", "ci", "--workspace", "team-a").out.strip()
    keys("create", "ada")
    keys("revoke", "ada")
    (listed, ci, ada) = keys("list").out.splitlines()
    assert listed.split() == ["NAME", "WORKSPACE", "CREATED", "(UTC)", "REVOKED", "(UTC)"]
    assert ci.split()[:2] == ["ci", "team-a"]
    assert ci.split()[-1] == "-"
    assert ada.split()[-1] != "-"
    items = keys("list", "--json").document["items"]
    assert [(item["name"], item["revoked_at"] is None) for item in items] == [
        ("ci", True),
        ("ada", False),
    ]
    assert digest_of(SecretStr(key)) not in str(items)


def test_all_is_told_as_json_too(keys: Keys) -> None:
    made = keys("create", "ci", "--json").document
    assert KEY.fullmatch(made["key"])
    assert (made["name"], made["workspace"], made["revoked_at"]) == ("ci", "default", None)
    revoked = keys("revoke", "ci", "--json").document
    assert revoked["revoked_at"]
    assert "key" not in revoked


def test_an_empty_list_says_how_to_fill_it(keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    main(["db", "upgrade"])
    capsys.readouterr()
    result = keys("list")
    assert (result.code, result.out) == (ExitCode.OK, "")
    assert "prefect-mipro keys create NAME" in result.err


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "ci"]])
def test_a_database_that_is_not_there_is_named_and_not_made(
    keys: Keys, database: Path, arguments: list[str]
) -> None:
    asked = keys(*arguments)
    assert asked.code == ExitCode.FAILED
    assert f"there is no database {database}" in asked.err
    assert not database.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "ci"], ExitCode.FAILED, "'ci' was made before"),
        (["create", "two words"], ExitCode.USAGE, "the name is 'two words'"),
        (["create", "x", "--workspace", "../y"], ExitCode.USAGE, "the workspace is '../y'"),
        (["revoke", "nobody"], ExitCode.NOT_FOUND, "no key has the name 'nobody'"),
        (["list", "--database-url", "mysql://host/name"], ExitCode.FAILED, "unknown driver"),
        (
            ["create", "x", "--database-url", "sqlite:////none/such.db"],
            ExitCode.FAILED,
            "is missing",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(
    keys: Keys, arguments: list[str], code: ExitCode, words: str
) -> None:
    keys("create", "ci")
    result = keys(*arguments)
    assert (result.code, result.out) == (code, "")
    assert words in result.err


def test_a_running_server_takes_a_new_key_and_refuses_a_revoked_one(
    keys: Keys, database: Path
) -> None:
    settings = {"API_KEYS": "key-of-the-settings", "UPSTREAM_URL": "http://model.invalid/v1"}
    environment = {f"MIPRO_SERVER_{name}": value for name, value in settings.items()}
    with process(database.parent, **environment) as child:
        url = first_line(child)
        assert answered(url, "unknown").status_code == 401
        key = keys("create", "ci", "--workspace", "team-a").out.strip()
        wait_until(lambda: answered(url, key).status_code == 200)
        made = answered(url, key, session_id="s", config_body=CONFIG)
        assert made.status_code == 201, made.text
        assert [item["session_id"] for item in answered(url, key).json()["items"]] == ["s"]
        assert answered(url, "key-of-the-settings").json()["items"] == []
        assert keys("revoke", "ci").out == "ci is revoked; servers refuse it within a second\n"
        wait_until(lambda: answered(url, key).status_code == 401)
        assert answered(url, "key-of-the-settings").status_code == 200


def test_a_file_without_a_schema_gets_one_where_no_server_has_it(
    keys: Keys, database: Path
) -> None:
    database.touch()
    assert keys("create", "ci").code == ExitCode.OK
    assert keys("list", "--json").document["items"][0]["name"] == "ci"


def wait_until(happened: Callable[[], bool]) -> None:
    """Ask until it has: a second is promised, a slow machine adds to it."""
    given_up_at = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < given_up_at
