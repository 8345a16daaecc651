"""What the composition root puts together, and what it closes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.app import create_app
from prefect_mipro.server.providers import Provider
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.records import SessionFilter
from prefect_mipro.server.upstream.interface import Reply
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.server.upstreams import upstreams_of
from tests.server.live import LiveServer

CONFIG = {"prompt_learning": {"algorithm": "mipro"}}
SESSIONS = "/api/v1/online/sessions"


class Faulty:
    """A model whose driver has a fault of its own."""

    closed = False

    @asynccontextmanager
    async def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Reply]:
        raise RuntimeError("an internal secret")
        yield

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(
        database_url=f"sqlite:///{tmp_path}/mipro.db", upstream_url="http://model.invalid/v1"
    )


def test_without_keys_it_is_open(settings: ServerSettings) -> None:
    with LiveServer(create_app(settings)) as server:
        created = httpx.post(
            f"{server.url}{SESSIONS}", json={"session_id": "s", "config_body": CONFIG}
        )
        listed = httpx.get(f"{server.url}{SESSIONS}", headers={"Authorization": "Bearer any"})
    assert (created.status_code, listed.status_code) == (201, 200)
    assert created.json()["online_url"].startswith("http://127.0.0.1:8765/api/mipro/v1/s.")


def test_what_it_opens_it_closes(settings: ServerSettings) -> None:
    for _ in range(2):
        # SQLite serves one server: the second could not open what the first had left open.
        with LiveServer(create_app(settings)) as server:
            assert httpx.get(f"{server.url}/health").status_code == 200


async def test_what_it_is_given_stays_open(settings: ServerSettings) -> None:
    store = await open_store(settings.database_url)
    model = Faulty()
    app = create_app(settings, store=store, upstreams=Upstreams({"default": model}))
    async with app.router.lifespan_context(app):
        pass
    assert (await store.sessions(SessionFilter(), limit=1)).items == ()
    assert not model.closed
    await store.close()


@pytest.mark.parametrize(
    "path",
    ["/api/mipro/v1/s/r/chat/completions", "/api/mipro/v1/s/chat/completions"],
)
def test_a_fault_of_ours_tells_the_log_and_not_the_caller(
    settings: ServerSettings, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    body: Any = {"messages": [{"role": "user", "content": "a private prompt"}]}
    app = create_app(settings, upstreams=Upstreams({"default": Faulty()}))
    with caplog.at_level(logging.ERROR), LiveServer(app) as server:
        httpx.post(f"{server.url}{SESSIONS}", json={"session_id": "s", "config_body": CONFIG})
        answer = httpx.post(f"{server.url}{path}", json=body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "BackendFailed"
    assert "secret" not in answer.text
    (fault,) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert "an internal secret" in str(fault)
    assert "a private prompt" not in caplog.text


def test_a_session_whose_provider_is_unknown_is_refused_with_the_known_ones(
    settings: ServerSettings,
) -> None:
    app = create_app(settings.model_copy(update={"upstream_url": None}))
    config = {"prompt_learning": {"algorithm": "mipro", "policy": {"provider": "openai"}}}
    with LiveServer(app) as server:
        answer = httpx.post(f"{server.url}{SESSIONS}", json={"config_body": config})
    assert (answer.status_code, answer.json()["error"]) == (422, "ConfigInvalid")
    assert "embedded" in answer.json()["message"]


def test_providers_become_upstreams_beside_the_default(settings: ServerSettings) -> None:
    groq = Provider(base_url="https://groq.invalid/openai/v1")
    upstreams = upstreams_of(settings.model_copy(update={"providers": {"groq": groq}}))
    assert "groq.invalid" in repr(upstreams.named("groq"))
    assert "model.invalid" in repr(upstreams.named("openai"))


def test_the_api_describes_itself(settings: ServerSettings) -> None:
    described = create_app(settings).openapi()
    assert f"{SESSIONS}/{{session_id}}/reward" in described["paths"]
    assert "x-mipro-candidate-id" in described["info"]["description"]
    operations = [
        operation["operationId"]
        for methods in described["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(operations)) == len(operations)
