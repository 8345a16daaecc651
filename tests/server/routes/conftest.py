"""A backend with a key on a real socket, and a scripted model's server behind it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from tests.server.live import LiveServer
from tests.server.scripted_upstream import ScriptedUpstream

KEY = "a-key-of-the-tests"
LARGEST_BODY = 100_000
SESSIONS = "/api/v1/online/sessions"
CONFIG: dict[str, Any] = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": "You classify banking queries."},
                {"role": "user", "order": 1, "pattern": "Query: {query}"},
            ],
            "wildcards": {"query": "REQUIRED"},
        },
        "policy": {"model": "the-policy-model", "provider": "openai"},
        "mipro": {"mode": "online", "online_pool": [1, 2, 3], "val_seeds": [7]},
    }
}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "You classify banking queries."},
        {"role": "user", "content": "Query: where is my card?"},
    ],
}


@dataclass(frozen=True)
class Caller:
    """What a test calls the backend with, and what it scripts behind it.

    `http` sends the key, `program` sends none.
    """

    url: str
    http: httpx.Client
    program: httpx.Client
    upstream: ScriptedUpstream
    numbers: Iterator[int]

    def session(self, **more: Any) -> dict[str, Any]:
        """A new session's status."""
        body = {"session_id": f"s{next(self.numbers)}", "config_body": CONFIG, **more}
        answer = self.http.post(SESSIONS, json=body)
        assert answer.status_code == 201, answer.text
        status: dict[str, Any] = answer.json()
        return status

    def chat(self, session: dict[str, Any], rollout_id: str, **more: Any) -> httpx.Response:
        """A proxied call as programs make it: without a key."""
        return self.program.post(chat_path(session, rollout_id), json={**CHAT, **more})


def chat_path(session: dict[str, Any], rollout_id: str) -> str:
    """Where the rollout's calls go."""
    return f"{urlsplit(session['online_url']).path}/{rollout_id}/chat/completions"


@pytest.fixture(scope="module")
def _live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with ScriptedUpstream() as upstream:
        settings = ServerSettings(
            database_url=f"sqlite:///{tmp_path_factory.mktemp('backend')}/mipro.db",
            api_keys=(SecretStr("another-key"), SecretStr(KEY)),
            upstream_url=upstream.url,
            public_url="http://mipro.invalid",
            max_body_bytes=LARGEST_BODY,
        )
        with LiveServer(create_app(settings)) as server:
            bearer = {"Authorization": f"Bearer {KEY}"}
            with (
                httpx.Client(base_url=server.url, headers=bearer, timeout=20) as http,
                httpx.Client(base_url=server.url, timeout=20) as program,
            ):
                yield Caller(server.url, http, program, upstream, itertools.count())


@pytest.fixture
def caller(_live: Caller) -> Caller:
    """The same backend for all tests of a file; each test has sessions of its own."""
    _live.upstream.reset()
    return _live
