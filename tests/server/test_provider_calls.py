"""Calls through the whole server to providers with keys, fallbacks and inference URLs."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.upstream.addresses import AllowedHost
from tests.server.live import LiveServer
from tests.server.scripted_upstream import DONE, ScriptedUpstream, answers, event

CALLER_KEY = "sk-of-the-caller"
SESSIONS = "/api/v1/online/sessions"
HI: Any = {"role": "user", "content": "hi"}


@dataclass(frozen=True)
class Place:
    """A running server, the model's server behind it, and the folder of its database."""

    url: str
    model: ScriptedUpstream
    folder: Path

    def create(self, **policy: Any) -> httpx.Response:
        """The answer to creating a session with that policy."""
        config = {
            "algorithm": "mipro",
            "initial_prompt": {
                "messages": [
                    {"role": "system", "order": 0, "pattern": "You classify."},
                    {"role": "user", "order": 1, "pattern": "{query}"},
                ]
            },
            "policy": {"model": "m", **policy},
            "mipro": {"online_proposer_mode": "off"},
        }
        body = {"session_id": "s", "config_body": {"prompt_learning": config}}
        return httpx.post(f"{self.url}{SESSIONS}", json=body, timeout=20)

    def models_and_costs(self) -> list[tuple[str | None, float | None]]:
        """What the session's traces say in the database, one after the other."""
        httpx.get(f"{self.url}{SESSIONS}/s", timeout=20)  # waits until all are written
        with contextlib.closing(sqlite3.connect(self.folder / "mipro.db")) as database:
            return list(
                database.execute("SELECT model, cost_usd FROM mipro_traces ORDER BY position")
            )

    def wait_until_idle(self) -> None:
        """Return when no call is under way: one has its last byte before it is over."""
        deadline = time.monotonic() + 20
        while "mipro_proxy_calls_in_flight 0.0" not in httpx.get(f"{self.url}/metrics").text:
            assert time.monotonic() < deadline

    def client(self, *, key: str | None = None, **policy: Any) -> openai.OpenAI:
        """A client of a new session with that policy, which brings that key."""
        created = self.create(**policy)
        assert created.is_success, created.text
        path = httpx.URL(created.json()["online_url"]).path
        headers = {"x-provider-key": key} if key else {}
        return openai.OpenAI(
            base_url=f"{self.url}{path}", api_key="unused", default_headers=headers, max_retries=0
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ScriptedUpstream() as model:
        providers: Any = {
            "own": {"base_url": f"{model.url}/own", "caller_key": "required"},
            "spared": {
                "base_url": f"{model.url}/spared",
                "api_key": "sk-of-the-server",
                "fallback": {"model": "spare"},
            },
        }
        settings = ServerSettings(
            database_url=f"sqlite:///{tmp_path}/mipro.db",
            providers=providers,
            max_calls_in_flight=1,
            allowed_inference_hosts=(AllowedHost("127.0.0.1"),),
        )
        with LiveServer(create_app(settings)) as server:
            yield Place(server.url, model, tmp_path)


def ask(client: openai.OpenAI, **more: Any) -> str | None:
    messages: Any = [{"role": "system", "content": "You classify."}, HI]
    answer = client.chat.completions.create(model="m", messages=messages, **more)
    content: str | None = answer.choices[0].message.content
    return content


def test_a_callers_key_reaches_the_provider_and_nothing_else(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert ask(place.client(provider="own", key=CALLER_KEY)) == "hello"
        place.model.script.append(answers(500))
        with pytest.raises(openai.InternalServerError):
            ask(place.client(provider="own", key=CALLER_KEY))
    keys = [received.headers["authorization"] for received in place.model.received]
    assert keys == [f"Bearer {CALLER_KEY}"] * 2
    assert all("x-provider-key" not in received.headers for received in place.model.received)
    logged = [record for record in caplog.records if record.name.startswith("prefect_mipro")]
    assert CALLER_KEY not in "".join(str(vars(record)) for record in logged)
    assert len(place.models_and_costs()) == 2
    for file in place.folder.iterdir():
        assert CALLER_KEY.encode() not in file.read_bytes()


def test_without_a_callers_key_the_official_client_raises_its_authentication_error(
    place: Place,
) -> None:
    with pytest.raises(openai.AuthenticationError, match="x-provider-key"):
        ask(place.client(provider="own"))
    assert place.model.received == []


def test_after_a_failure_the_spare_model_answers(place: Place) -> None:
    place.model.script.append(answers(500))
    assert ask(place.client(provider="spared")) == "hello"
    assert [received.body["model"] for received in place.model.received] == ["m", "spare"]


def test_a_fallback_is_named_by_its_trace_and_has_no_price_but_its_own(place: Place) -> None:
    price: Any = {"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": 1.0}
    with place.client(provider="spared", **price) as client:
        place.model.script.append(answers(500))
        ask(client)
        ask(client)
    assert place.models_and_costs() == [("spare", None), (None, pytest.approx(9e-6))]


def test_one_call_more_than_the_server_takes_is_told_to_come_back(place: Place) -> None:
    place.model.script.append(place.model.stream(event("a"), DONE))
    with place.client(provider="spared") as client:
        under_way = iter(client.chat.completions.create(model="m", messages=[HI], stream=True))
        next(under_way)
        with pytest.raises(openai.RateLimitError, match="--max-calls-in-flight") as refused:
            ask(client)
        place.model.gate.set()
        assert [chunk.choices[0].finish_reason for chunk in under_way] == ["stop"]
        assert refused.value.response.headers["retry-after"]
        place.wait_until_idle()
        assert ask(client) == "hello"


def test_an_allowed_inference_url_is_called_in_place_of_the_provider(place: Place) -> None:
    url = f"{place.model.url}/elsewhere"
    assert ask(place.client(provider="spared", inference_url=url)) == "hello"
    (received,) = place.model.received
    assert received.path == "/v1/elsewhere/chat/completions"
    assert "authorization" not in received.headers


def test_creating_a_session_with_any_other_url_is_refused_by_name(place: Place) -> None:
    refused = place.create(inference_url="http://169.254.169.254/latest")
    assert (refused.status_code, refused.json()["error"]) == (422, "ConfigInvalid")
    assert "169.254.169.254" in refused.json()["message"]
    assert "--allowed-inference-hosts" in refused.json()["message"]
