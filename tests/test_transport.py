"""Idle connections: the client keeps them almost as long as the server does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpcore
import httpcore2
import pytest
from fastapi import FastAPI
from openai import APIStatusError
from pydantic import SecretStr

from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.errors import MiproError
from prefect_mipro.server.__main__ import _Server
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.tasks.openai_clients import AsyncOpenAIClient, OpenAIClient
from prefect_mipro.transport import CLIENT_IDLE_SECONDS, SERVER_IDLE_SECONDS, retry_after_seconds
from tests.client.backend import KEY, Answer, Backend

QUESTION: Any = [{"role": "user", "content": "hello"}]
COMPLETION = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
# The first is longer than uvicorn's own default and httpx's.
WAITS = (30.0, CLIENT_IDLE_SECONDS - 1.0, CLIENT_IDLE_SECONDS + 1.0)
Wait = Callable[[float], None]


@dataclass(eq=False)
class Rollout:
    """A rollout that has no use for the headers of its answers."""

    base_url: str

    def heard(self, headers: Mapping[str, str]) -> None:
        pass


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Let seconds pass for the idle connections of HTTP clients."""
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(passed))
    for library in (httpcore, httpcore2):
        for driver in (library._sync, library._async):
            monkeypatch.setattr(driver.http11, "time", clock)
    return passed.append


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    backend.answers(*[Answer(COMPLETION)] * (len(WAITS) + 1))
    yield backend
    backend.stop()


def kept(backend: Backend) -> list[bool]:
    """Whether each request but the first came over the connection of the one before."""
    ports = [each.port for each in backend.received]
    return [one == other for one, other in pairwise(ports)]


def test_a_client_gives_a_connection_up_shortly_before_the_server_closes_it() -> None:
    server = _Server(ServerSettings(), FastAPI(), ())
    assert server.config.timeout_keep_alive == SERVER_IDLE_SECONDS
    assert 1 <= SERVER_IDLE_SECONDS - CLIENT_IDLE_SECONDS <= 10


def test_an_idle_connection_is_used_again(backend: Backend, wait: Wait) -> None:
    with Client(backend.url) as client:
        for seconds in (0.0, *WAITS):
            wait(seconds)
            client.health()
    assert kept(backend) == [True, True, False]


async def test_an_idle_connection_of_an_event_loop_is_used_again(
    backend: Backend, wait: Wait
) -> None:
    async with AsyncClient(backend.url) as client:
        for seconds in (0.0, *WAITS):
            wait(seconds)
            await client.health()
    assert kept(backend) == [True, True, False]


def test_an_idle_connection_of_the_official_client_is_used_again(
    backend: Backend, wait: Wait
) -> None:
    client = OpenAIClient(backend.url, SecretStr(KEY), timeout_seconds=30.0)
    for seconds in (0.0, *WAITS):
        wait(seconds)
        client.at(Rollout(backend.url), {}).chat.completions.create(model="m", messages=QUESTION)
    client.close()
    assert kept(backend) == [True, True, False]


async def test_an_idle_connection_of_the_official_async_client_is_used_again(
    backend: Backend, wait: Wait
) -> None:
    client = AsyncOpenAIClient(backend.url, SecretStr(KEY), timeout_seconds=30.0)
    for seconds in (0.0, *WAITS):
        wait(seconds)
        await client.at(Rollout(backend.url), {}).chat.completions.create(
            model="m", messages=QUESTION
        )
    await client.aclose()
    assert kept(backend) == [True, True, False]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_a_key_or_a_prompt_elsewhere(backend: Backend, status: int) -> None:
    redirect = Answer({}, status=status, headers={"Location": f"{backend.url}/elsewhere"})
    backend.script.clear()
    backend.answers(redirect, redirect)
    official = OpenAIClient(backend.url, SecretStr(KEY), timeout_seconds=30.0)
    with pytest.raises(APIStatusError):
        official.at(Rollout(backend.url), {}).chat.completions.create(model="m", messages=QUESTION)
    official.close()
    with Client(backend.url, KEY) as client, pytest.raises(MiproError, match="redirects to"):
        client.health()
    assert [each.path for each in backend.received] == ["/chat/completions", "/health"]


def test_a_date_to_come_back_counts_from_the_date_of_the_answer_itself() -> None:
    due, sent = "Mon, 05 Jan 2015 10:00:30 GMT", "Mon, 05 Jan 2015 10:00:00 GMT"
    assert retry_after_seconds(due, sent=sent) == 30.0
    assert retry_after_seconds(sent, sent=due) == 0.0
    assert retry_after_seconds(due, sent="some day") == 0.0
