"""Deleting a session over HTTP: what callers see then, and what calls under way see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.routes.conftest import CHAT, SESSIONS, Caller, chat_path
from tests.server.scripted_upstream import Connection, complete

OLDER_DIALECT = "/api/prompt-learning/online/mipro/sessions"


def path_of(session: dict[str, Any]) -> str:
    return f"{SESSIONS}/{session['session_id']}"


@pytest.mark.parametrize("prefix", [SESSIONS, OLDER_DIALECT])
def test_a_deleted_session_is_as_unknown_as_one_that_never_was(caller: Caller, prefix: str) -> None:
    session = caller.session()
    caller.chat(session, "r1")
    answer = caller.http.delete(f"{prefix}/{session['session_id']}")
    assert answer.status_code == 200
    assert answer.json() == {"session_id": session["session_id"], "deleted": True}
    for again in (caller.http.get(path_of(session)), caller.http.delete(path_of(session))):
        assert (again.status_code, again.json()["error"]) == (404, "SessionNotFound")
    # Of its URL nobody is told whose it was.
    assert caller.chat(session, "r2").status_code == 401
    by_id = f"/api/mipro/v1/{session['session_id']}/r2/chat/completions"
    assert caller.http.post(by_id, json=CHAT).status_code == 404


@pytest.mark.parametrize("state", ["running", "paused", "cancelled"])
def test_it_is_deleted_in_any_state(caller: Caller, state: str) -> None:
    session = caller.session()
    caller.http.patch(path_of(session), json={"state": state})
    assert caller.http.delete(path_of(session)).status_code == 200


def test_the_id_may_be_given_to_another_session_which_knows_nothing_of_the_first(
    caller: Caller,
) -> None:
    first = caller.session()
    caller.chat(first, "r1")
    caller.http.delete(path_of(first))
    config = {"prompt_learning": {"algorithm": "mipro", "policy": {"model": "another"}}}
    again = caller.session(session_id=first["session_id"], config_body=config)
    assert again["rollout_count"] == 0
    assert again["online_url"] != first["online_url"]
    answer = caller.chat(again, "r1")
    assert answer.headers["x-mipro-candidate-id"] == again["baseline_candidate_id"]
    models = caller.http.get(chat_path(again, "r1").replace("chat/completions", "models"))
    assert models.json()["data"][0]["id"] == "another"


def when_told(connection: Connection) -> None:
    """The answer of a model that takes its time."""
    assert connection.upstream.gate.wait(20)
    complete(connection)


def test_a_call_under_way_is_answered_and_its_reward_finds_nothing(caller: Caller) -> None:
    session, other = caller.session(), caller.session()
    caller.upstream.script.append(when_told)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(caller.chat, session, "r1")
        assert caller.upstream.arrived.wait(20)
        caller.http.delete(path_of(session))
        caller.upstream.gate.set()
        assert waiting.result().status_code == 200
    reward = {"reward_info": {"score": 1.0}, "rollout_id": "r1"}
    refused = caller.http.post(f"{path_of(session)}/reward", json=reward)
    assert (refused.status_code, refused.json()["error"]) == (404, "SessionNotFound")
    # What it left behind is dropped, and what came with it is kept.
    assert caller.chat(other, "r1").status_code == 200
    exported = caller.http.get(f"{path_of(other)}/export").text
    assert exported.count('"part":"trace"') == 1
