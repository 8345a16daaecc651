"""Each key sees the sessions of its workspace, and of the others not even that they are there."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from prefect_mipro.models.keys import Key
from prefect_mipro.server.app import create_app
from prefect_mipro.server.services.access import digest_of, new_key
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_beside_server
from tests.server.live import LiveServer
from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS
from tests.server.scripted_upstream import ScriptedUpstream

SYSTEMS = "/api/systems"
PROXY = "/api/mipro/v1"
# Paths that name no session: lists and creation, which are tested by themselves, and what is no
# session's.
WITHOUT_SESSION = {
    SESSIONS,
    "/api/prompt-learning/online/mipro/sessions",
    "/health",
    "/ready",
    "/metrics",
}
IMPORT = f"{SESSIONS}/{{session_id}}/import"


@dataclass(frozen=True)
class Server:
    """A server on which two workspaces work, each with a key."""

    app: FastAPI
    ours: httpx.Client
    theirs: httpx.Client
    operator: httpx.Client
    program: httpx.Client
    numbers: Iterator[int]

    def session(self, owner: httpx.Client) -> dict[str, Any]:
        """A new session with a rewarded rollout."""
        body = {"session_id": f"s{next(self.numbers)}", "config_body": CONFIG}
        answer = owner.post(SESSIONS, json=body)
        assert answer.status_code == 201, answer.text
        status: dict[str, Any] = answer.json()
        session_id = status["session_id"]
        call = owner.post(f"{PROXY}/{session_id}/r1/chat/completions", json=CHAT)
        assert call.status_code == 200, call.text
        reward = {"reward_info": {"score": 1.0}, "rollout_id": "r1", "metadata": {"seed": 7}}
        assert owner.post(f"{SESSIONS}/{session_id}/reward", json=reward).status_code == 200
        return status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database_url = f"sqlite:///{tmp_path_factory.mktemp('backend')}/mipro.db"
    with ScriptedUpstream() as upstream:
        settings = ServerSettings(
            database_url=database_url,
            api_keys=(SecretStr("key-of-the-operator"),),
            upstream_url=upstream.url,
        )
        app = create_app(settings)
        with LiveServer(app) as live:
            keys = asyncio.run(make_keys(settings.database_url, "ours", "theirs"))

            def client(key: str | None) -> httpx.Client:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                return httpx.Client(base_url=live.url, headers=headers, timeout=20)

            with (
                client(keys["ours"]) as ours,
                client(keys["theirs"]) as theirs,
                client("key-of-the-operator") as operator,
                client(None) as program,
            ):
                yield Server(app, ours, theirs, operator, program, itertools.count())


async def make_keys(database_url: str, *workspaces: str) -> dict[str, str]:
    store = await open_beside_server(database_url)
    made = {workspace: new_key() for workspace in workspaces}
    for workspace, key in made.items():
        await store.add_key(
            Key(
                key_id=f"key_{workspace}",
                name=workspace,
                workspace=workspace,
                digest=digest_of(key),
                created_at=datetime.now(UTC),
            )
        )
    await store.close()
    return {workspace: key.get_secret_value() for workspace, key in made.items()}


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """All methods and paths that the server serves but for the proxy."""
    return [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]


def filled(path: str, session: dict[str, Any]) -> str:
    return path.format(
        session_id=session["session_id"],
        candidate_id=session["champion_candidate_id"],
        rollout_id="r1",
        lever="instruction",
        version=1,
    )


def test_every_route_answers_for_anothers_session_as_for_one_that_is_not_there(
    server: Server,
) -> None:
    wrong = {}
    unknown = {"session_id": "nobody", "champion_candidate_id": "no_candidate"}
    for method, path in routes_of(server.app):
        if path in WITHOUT_SESSION or path == IMPORT:
            continue
        session = server.session(server.theirs)
        foreign = server.ours.request(method, filled(path, session))
        missing = server.ours.request(method, filled(path, unknown))
        told = foreign.text
        for name, value in unknown.items():
            told = told.replace(session[name], value)
        own = server.theirs.request(method, filled(path, session))
        if (foreign.status_code, told) != (404, missing.text) or own.status_code == 404:
            wrong[method, path] = foreign.status_code, told, missing.text, own.status_code
    assert wrong == {}


def test_every_path_names_what_it_is_about_in_words_that_the_door_knows(server: Server) -> None:
    for _, path in routes_of(server.app):
        named = "{session_id}" in path or "{candidate_id}" in path
        assert named != (path in WITHOUT_SESSION), path


def test_a_list_is_of_ones_own_workspace(server: Server) -> None:
    ours, theirs = server.session(server.ours), server.session(server.theirs)
    for path in (SESSIONS, "/api/prompt-learning/online/mipro/sessions"):
        listed = [item["session_id"] for item in server.ours.get(path).json()["items"]]
        assert ours["session_id"] in listed
        assert theirs["session_id"] not in listed
        asked = server.ours.get(path, params={"system_id": theirs["session_id"]})
        assert asked.json()["items"] == []


def test_an_id_of_another_workspace_is_taken_and_its_session_left_alone(server: Server) -> None:
    theirs = server.session(server.theirs)
    session_id = theirs["session_id"]
    before = server.theirs.get(f"{SESSIONS}/{session_id}").json()
    answer = server.ours.post(SESSIONS, json={"session_id": session_id, "config_body": CONFIG})
    assert answer.status_code == 409
    assert answer.json() == {
        "error": "Conflict",
        "message": f"the session id '{session_id}' is taken; choose another one",
        "code": "Conflict",
        "detail": None,
    }
    assert server.theirs.get(f"{SESSIONS}/{session_id}").json() == before


def test_an_import_lands_in_the_workspace_of_who_imports(server: Server) -> None:
    session_id = server.session(server.theirs)["session_id"]
    exported = server.theirs.get(f"{SESSIONS}/{session_id}/export")
    lines = [json.loads(line) for line in exported.text.splitlines()]
    assert "workspace" not in lines[0]
    path = f"{SESSIONS}/{session_id}/import"
    for some in (lines, lines[1:], lines[-1:]):
        answer = server.ours.post(path, json={"lines": some})
        assert (answer.status_code, answer.json()["message"]) == (
            409,
            f"the session id '{session_id}' is taken; choose another one",
        )
    assert server.theirs.delete(f"{SESSIONS}/{session_id}").status_code == 200
    answer = server.ours.post(path, json={"lines": lines})
    assert answer.json()["complete"], answer.text
    assert server.ours.get(f"{SESSIONS}/{session_id}").json()["rollout_count"] == 1
    assert server.theirs.get(f"{SESSIONS}/{session_id}").status_code == 404


def test_a_plain_id_is_served_with_a_key_of_its_workspace_only(server: Server) -> None:
    session = server.session(server.theirs)
    bodies = []
    for session_id in (session["session_id"], "nobody"):
        for path in (f"{session_id}/r2/chat/completions", f"{session_id}/chat/completions"):
            answer = server.ours.post(f"{PROXY}/{path}", json=CHAT)
            assert answer.status_code == 404
            bodies.append(answer.text.replace(session_id, "it"))
        assert server.ours.get(f"{PROXY}/{session_id}/models").status_code == 404
    assert len(set(bodies)) == 1
    path = f"{PROXY}/{session['session_id']}/r2/chat/completions"
    assert server.theirs.post(path, json=CHAT).status_code == 200
    assert server.program.post(path, json=CHAT).status_code == 401


def test_a_proxy_url_serves_whoever_has_it(server: Server) -> None:
    session = server.session(server.theirs)
    path = urlsplit(session["chat_completions_url"]).path
    for caller in (server.program, server.ours, server.theirs):
        assert caller.post(path, json=CHAT).status_code == 200


def test_a_candidate_of_another_workspace_is_as_unknown_in_ones_own_session(
    server: Server,
) -> None:
    ours, theirs = server.session(server.ours), server.session(server.theirs)
    foreign = theirs["champion_candidate_id"]
    session = f"{SESSIONS}/{ours['session_id']}"
    evals = f"{SYSTEMS}/{ours['session_id']}/seed-evals"

    def told(candidate_id: str) -> list[tuple[int, str]]:
        reward = {"reward_info": {"score": 1.0}, "candidate_id": candidate_id, "rollout_id": "r9"}
        lease = {"rollout_id": "r8", "candidate_id": candidate_id}
        answers = [
            server.ours.get(evals, params={"candidate_id": candidate_id}),
            server.ours.get(f"{session}/examples", params={"candidate_id": candidate_id}),
            server.ours.get(f"{session}/prompt", params=lease),
            server.ours.post(f"{session}/champion", json={"candidate_id": candidate_id}),
            server.ours.post(f"{session}/reward", json=reward),
            server.ours.post(
                f"{PROXY}/{ours['session_id']}/r8/chat/completions",
                json=CHAT,
                headers={"x-mipro-candidate-id": candidate_id},
            ),
        ]
        return [(each.status_code, each.text.replace(candidate_id, "it")) for each in answers]

    answers = told(foreign)
    assert [status for status, _ in answers] == [404] * len(answers)
    assert answers == told("no_candidate")


def test_the_counts_of_all_workspaces_are_for_the_operator(server: Server) -> None:
    assert server.operator.get("/metrics").status_code == 200
    refused = server.ours.get("/metrics")
    assert refused.status_code == 401
    assert "send a key of the workspace 'default'" in refused.json()["message"]


def test_keys_of_the_settings_are_of_the_default_workspace(server: Server) -> None:
    session = server.session(server.ours)
    assert server.operator.get(f"{SESSIONS}/{session['session_id']}").status_code == 404


def test_a_url_that_has_leaked_is_replaced(server: Server) -> None:
    session = server.session(server.ours)
    rotated = server.ours.post(f"{SESSIONS}/{session['session_id']}/proxy-token")
    assert rotated.status_code == 200
    urls = rotated.json()
    before, after = (urlsplit(told["chat_completions_url"]).path for told in (session, urls))
    assert server.program.post(before, json=CHAT).status_code == 401
    assert server.program.post(after, json=CHAT).status_code == 200
    status = server.ours.get(f"{SESSIONS}/{session['session_id']}").json()
    assert {name: status[name] for name in urls} == urls
