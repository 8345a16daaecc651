"""A session as JSON lines over HTTP."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.server.routes.conftest import SESSIONS, Caller


def exported(caller: Caller, session_id: str, **query: str) -> list[dict[str, Any]]:
    answer = caller.http.get(f"{SESSIONS}/{session_id}/export", params=query)
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def lived(caller: Caller) -> dict[str, Any]:
    """A session with three rollouts, of which two are rewarded."""
    session = caller.session()
    for number in range(3):
        caller.chat(session, f"r{number}")
    for number in range(2):
        caller.http.post(
            f"{SESSIONS}/{session['session_id']}/reward",
            json={"reward_info": {"score": 0.5, "feedback": "fair"}, "rollout_id": f"r{number}"},
        )
    return session


def test_an_export_begins_with_the_session_and_ends_with_the_counts_of_its_lines(
    caller: Caller,
) -> None:
    session_id = lived(caller)["session_id"]
    first, *rows, last = exported(caller, session_id)
    assert (first["part"], first["format"]) == ("session", "prefect-mipro-session")
    assert (first["session_id"], first["format_version"]) == (session_id, 1)
    counts = Counter(row["part"] for row in rows)
    assert last["part"] == "end"
    assert {part: n for part, n in last["lines"].items() if n} == {"session": 1, **counts}
    assert counts["candidate"] == 1
    assert counts["lever_version"] == 2
    assert counts["rollout"] == counts["trace"] == 3
    assert counts["reward"] == 2


def test_rows_say_what_was_asked_answered_and_rewarded(caller: Caller) -> None:
    rows = exported(caller, lived(caller)["session_id"])
    traces = [row for row in rows if row["part"] == "trace"]
    assert traces[0]["messages"][1]["content"] == "Query: where is my card?"
    assert {row["rollout_id"] for row in traces} == {"r0", "r1", "r2"}
    (reward, _) = (row for row in rows if row["part"] == "reward")
    assert (reward["score"], reward["feedback"]) == (0.5, "fair")


def test_without_traces_no_line_holds_what_was_said(caller: Caller) -> None:
    rows = exported(caller, lived(caller)["session_id"], traces="false")
    assert "trace" not in {row["part"] for row in rows}
    assert "where is my card?" not in json.dumps(rows)


def test_an_export_holds_no_secret_and_needs_a_key(caller: Caller) -> None:
    session = lived(caller)
    secret = session["online_url"].rpartition(".")[2]
    assert secret not in json.dumps(exported(caller, session["session_id"]))
    assert caller.program.get(f"{SESSIONS}/{session['session_id']}/export").status_code == 401


@pytest.mark.parametrize("path", ["no-such/export", "no%20such/export"])
def test_what_is_no_session_is_refused_before_the_first_line(caller: Caller, path: str) -> None:
    answer = caller.http.get(f"{SESSIONS}/{path}")
    assert answer.status_code in (404, 422)
    assert answer.json()["error"] in ("SessionNotFound", "InputInvalid")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "lines"),
        ({"lines": []}, "lines"),
        ({"lines": ["rollout"]}, "lines"),
        ({"lines": [{"part": "rollouts"}]}, "'rollouts'"),
        ({"lines": [{"part": "end"}]}, "lines"),
        ({"lines": [{"part": "session", "format": "zip"}]}, "format"),
    ],
)
def test_lines_that_are_none_of_an_export_are_refused(
    caller: Caller, body: dict[str, Any], problem: str
) -> None:
    answer = caller.http.post(f"{SESSIONS}/new/import", json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "InputInvalid")
    assert problem in answer.json()["message"]


def test_a_session_keeps_its_id_and_is_not_imported_over_itself(caller: Caller) -> None:
    session_id = lived(caller)["session_id"]
    lines = exported(caller, session_id)
    renamed = caller.http.post(f"{SESSIONS}/another/import", json={"lines": lines})
    assert (renamed.status_code, renamed.json()["error"]) == (422, "InputInvalid")
    again = caller.http.post(f"{SESSIONS}/{session_id}/import", json={"lines": lines})
    assert (again.status_code, again.json()["error"]) == (409, "Conflict")
