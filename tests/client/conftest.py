"""A scripted backend, both clients of it, which wait for nothing, and a session on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.client.session import MiproOnlineSession
from tests.client.backend import KEY, Backend

Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIPRO_BACKEND_URL", "MIPRO_API_KEY", "SYNTH_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.stop()


@pytest.fixture
def waits() -> list[float]:
    """The seconds that a client of this test would have waited."""
    return []


@pytest.fixture
def client(backend: Backend, waits: list[float]) -> Iterator[Client]:
    with Client(backend.url, KEY, sleep=waits.append, jitter=lambda: 1.0) as client:
        yield client


@pytest.fixture
async def async_client(backend: Backend, waits: list[float]) -> AsyncIterator[AsyncClient]:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with AsyncClient(backend.url, KEY, sleep=sleep, jitter=lambda: 1.0) as client:
        yield client


@pytest.fixture(params=["", "_async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Makes a call by its name, one time as it is and one time as its `_async` twin."""

    def made(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        value = getattr(owner, name + request.param)(*args, **kwargs)
        return asyncio.run(value) if request.param else value

    return made


@pytest.fixture
def session(backend: Backend) -> MiproOnlineSession:
    return MiproOnlineSession("s", backend.url, KEY)
