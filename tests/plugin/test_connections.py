"""Connections: shared while somebody holds them, closed when nobody does, and discreet."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import httpx
import pytest

from prefect_mipro import tasks
from prefect_mipro.client.operations import health
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.connections import (
    AsyncConnections,
    Connections,
    async_connection_to,
    connection_to,
    credentials_of,
)


@pytest.fixture
def handle(backend: EmbeddedBackend) -> SessionHandle:
    return SessionHandle(session_id="bot", backend_url=backend.url)


def test_those_who_hold_a_connection_at_the_same_time_share_it(handle: SessionHandle) -> None:
    connections = Connections()
    with connections.to(handle) as one, connections.to(handle) as other:
        assert one is other


def test_the_last_one_closes_it(handle: SessionHandle) -> None:
    connections = Connections()
    with connections.to(handle) as outer:
        with connections.to(handle):
            pass
        assert outer.client.send(health())
    with pytest.raises(RuntimeError, match="client has been closed"):
        outer.client.send(health())


def test_later_users_get_a_new_one(handle: SessionHandle) -> None:
    connections = Connections()
    with connections.to(handle) as one:
        pass
    with connections.to(handle) as other:
        assert one is not other
        assert other.client.send(health())


def test_another_backend_is_another_connection(handle: SessionHandle) -> None:
    connections = Connections()
    elsewhere = SessionHandle(session_id="bot", backend_url="http://127.0.0.1:1")
    with connections.to(handle) as one, connections.to(elsewhere) as other:
        assert one is not other


def test_many_threads_share_one(handle: SessionHandle) -> None:
    connections = Connections()

    def ask(_number: int) -> int:
        with connections.to(handle) as connection:
            connection.client.send(health())
            return id(connection)

    with connections.to(handle) as kept, ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {id(kept)}


def test_a_handle_keeps_its_connection_open_for_a_block(handle: SessionHandle) -> None:
    with handle.connected() as held:
        assert held is handle
        seen = []
        for _ in range(2):
            with connection_to(handle) as connection:
                seen.append(connection)
    assert seen[0] is seen[1]


async def test_what_runs_on_one_event_loop_shares_a_connection(handle: SessionHandle) -> None:
    connections = AsyncConnections()
    together = asyncio.Barrier(8)

    async def ask() -> int:
        async with connections.to(handle) as connection:
            await together.wait()
            await connection.client.send(health())
            return id(connection)

    assert len({*await asyncio.gather(*(ask() for _ in range(8)))}) == 1


async def test_the_last_coroutine_closes_it(handle: SessionHandle) -> None:
    async with handle.aconnected(), async_connection_to(handle) as connection:
        pass
    with pytest.raises(RuntimeError, match="client has been closed"):
        await connection.client.send(health())


async def test_a_user_that_is_cancelled_leaves_the_connection_to_the_others(
    handle: SessionHandle,
) -> None:
    connections = AsyncConnections()

    async def use() -> bool:
        async with connections.to(handle) as connection:
            return bool(await connection.client.send(health()))

    first, second = asyncio.ensure_future(use()), asyncio.ensure_future(use())
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled()


async def test_a_connection_that_cannot_be_made_fails_for_all_who_wait_for_it() -> None:
    connections = AsyncConnections()
    handle = SessionHandle(session_id="bot", backend_url="not a url")

    async def use() -> None:
        async with connections.to(handle):
            pass

    for error in await asyncio.gather(use(), use(), return_exceptions=True):
        assert isinstance(error, ValueError)


def test_each_event_loop_has_a_connection_of_its_own(handle: SessionHandle) -> None:
    connections = AsyncConnections()

    async def use() -> bool:
        async with connections.to(handle) as connection:
            return bool(await connection.client.send(health()))

    assert [asyncio.run(use()) for _ in range(2)] == [True, True]


def test_a_connection_that_cannot_be_made_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections()
    handle = SessionHandle(session_id="bot", backend_url="not a url")
    for _ in range(2):
        with pytest.raises(ValueError, match="not a url"), connections.to(handle):
            pass


def test_an_embedded_backend_of_this_process_gets_its_own_key(
    handle: SessionHandle, backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_API_KEY", "the key of another backend")
    assert credentials_of(handle).api_key == backend.api_key


def test_model_calls_may_take_longer_than_operations(handle: SessionHandle) -> None:
    with Connections().to(handle) as connection:
        assert connection.client.timeout_seconds == 30.0
        assert connection.model.timeout_seconds == 600.0


@pytest.mark.parametrize(
    "name", ["acreate_session", "areport_rewards", "arun_rollouts", "run_rollout", "session_status"]
)
def test_a_task_travels_to_other_processes_while_a_connection_is_open(
    name: str, handle: SessionHandle
) -> None:
    with connection_to(handle):
        assert cloudpickle.dumps(getattr(tasks, name).fn)


def test_a_handle_names_the_base_url_of_a_rollout() -> None:
    handle = SessionHandle(session_id="bot", backend_url="https://h.example/api/v1/")
    assert handle.proxy_url("r-1") == "https://h.example/api/mipro/v1/bot/r-1"
    assert httpx.URL(handle.proxy_url("r-1")).path == handle.proxy_path("r-1")
