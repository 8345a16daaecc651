"""Every answer names its request, as the lines of the log about it do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from prefect_mipro.server.app import create_app
from prefect_mipro.server.logs import EventFormatter
from prefect_mipro.server.settings import ServerSettings
from tests.server.live import LiveServer
from tests.server.scripted_upstream import DONE, ScriptedUpstream, answers, event

SESSIONS = "/api/v1/online/sessions"
PROXY = "/api/mipro/v1/s"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "where?"}]}


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as model:
        model.gate.set()
        yield model


@pytest.fixture(scope="module")
def http(
    tmp_path_factory: pytest.TempPathFactory, model: ScriptedUpstream
) -> Iterator[httpx.Client]:
    settings = ServerSettings(
        database_url=f"sqlite:///{tmp_path_factory.mktemp('server')}/mipro.db",
        upstream_url=model.url,
    )
    with (
        LiveServer(create_app(settings)) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        config = {"prompt_learning": {"algorithm": "mipro"}}
        body = {"session_id": "s", "config_body": config}
        assert client.post(SESSIONS, json=body).is_success
        yield client


def ids(answer: httpx.Response) -> tuple[str, str]:
    """Ours, and the one that any client looks for."""
    return answer.headers["x-mipro-request-id"], answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{PROXY}/models"),
        ("GET", f"{PROXY}/nothing"),
        ("GET", f"{PROXY}/chat/completions"),
        ("POST", f"{PROXY}/chat/completions"),
        ("GET", f"{SESSIONS}/s"),
        ("GET", f"{SESSIONS}/another"),
        ("POST", SESSIONS),
        ("GET", "/no/such/path"),
        ("GET", "/health"),
        ("GET", "/metrics"),
    ],
)
def test_it_is_the_callers_where_he_tells_one(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path, headers={"x-request-id": "req-7"})
    assert ids(answer) == ("req-7", "req-7")


def test_of_several_the_first_counts(http: httpx.Client) -> None:
    headers = [("x-request-id", "req-7"), ("x-request-id", "req-8")]
    assert ids(http.get("/health", headers=headers)) == ("req-7", "req-7")


@pytest.mark.parametrize("told", ["", "two words", "x" * 200])
def test_else_each_request_gets_one_of_its_own(http: httpx.Client, told: str) -> None:
    first, second = (
        ids(http.get(f"{PROXY}/models", headers={"x-request-id": told})) for _ in range(2)
    )
    assert first != second
    assert first[0] == first[1] != told


@pytest.mark.parametrize("stream", [False, True])
def test_the_models_servers_own_id_stays_beside_it(
    http: httpx.Client, model: ScriptedUpstream, stream: bool
) -> None:
    model.script.append(answers(401, x_request_id="up-1"))
    call = {**CHAT, "stream": stream}
    answer = http.post(f"{PROXY}/r1/chat/completions", json=call, headers={"x-request-id": "req-7"})
    assert ids(answer) == ("req-7", "up-1")


def test_a_stream_has_it_before_its_first_event(
    http: httpx.Client, model: ScriptedUpstream
) -> None:
    model.script.append(model.stream(event("a") + DONE))
    call = {**CHAT, "stream": True}
    with http.stream("POST", f"{PROXY}/r1/chat/completions", json=call) as answer:
        assert ids(answer)[0] == ids(answer)[1]


def test_the_official_clients_errors_have_the_id_under_which_the_log_tells_the_reason(
    http: httpx.Client, model: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    model.script.append(answers(200, b"no completion"))
    client = openai.OpenAI(
        base_url=str(http.base_url.join(f"{PROXY}/r1")), api_key="none", max_retries=0
    )
    caplog.handler.setFormatter(EventFormatter())
    with client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT)
    (line,) = (line for line in caplog.text.splitlines() if "request failed" in line)
    assert line.endswith(f"request_id={caught.value.request_id}")
