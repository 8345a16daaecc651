"""Shared connections to backends: opened by their first user, closed by their last."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import SecretStr

from prefect_mipro.blocks import MiproCredentials, aload, load
from prefect_mipro.client import environment
from prefect_mipro.client.clients import AsyncClient, Client, backend_root
from prefect_mipro.embedded import running_backend
from prefect_mipro.errors import InputInvalid
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.openai_clients import AsyncOpenAIClient, OpenAIClient

# A policy model may think for minutes where the backend itself answers at once.
MODEL_TIMEOUT_SECONDS = 600.0

# As many as the most rollouts that one process runs at a time.
MOST_CONNECTIONS = 256


class Connection:
    """Clients for one backend: one for its operations, two for the model behind its proxy."""

    def __init__(self, credentials: MiproCredentials) -> None:
        url, self.api_key = credentials.backend_url, credentials.api_key
        seconds = _timeouts(credentials)
        self.client = Client(
            url, self.api_key, timeout_seconds=seconds.backend, most_connections=MOST_CONNECTIONS
        )
        self.model = Client(
            url, self.api_key, timeout_seconds=seconds.model, most_connections=MOST_CONNECTIONS
        )
        self.openai = OpenAIClient(url, self.api_key, timeout_seconds=seconds.model)

    def close(self) -> None:
        """Close all clients."""
        self.openai.close()
        self.model.close()
        self.client.close()


class AsyncConnection:
    """Clients for one backend on one event loop; see `Connection`."""

    def __init__(self, credentials: MiproCredentials) -> None:
        url, self.api_key = credentials.backend_url, credentials.api_key
        seconds = _timeouts(credentials)
        self.client = AsyncClient(
            url, self.api_key, timeout_seconds=seconds.backend, most_connections=MOST_CONNECTIONS
        )
        self.model = AsyncClient(
            url, self.api_key, timeout_seconds=seconds.model, most_connections=MOST_CONNECTIONS
        )
        self.openai = AsyncOpenAIClient(url, self.api_key, timeout_seconds=seconds.model)

    async def aclose(self) -> None:
        """Close all clients."""
        await self.openai.aclose()
        await self.model.aclose()
        await self.client.aclose()


class Connections:
    """The connections of a process, shared by its threads; each closes with its last user.

    Loading a block is a request to Prefect, and every new client a new TCP connection: a flow that
    holds a connection while its tasks run saves both for each of them. Nothing outlives its
    users, so there is nothing to clean up, and a rotated key is read anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[int, str, str | None], tuple[Connection, int]] = {}

    @contextmanager
    def to(self, session: SessionAddress) -> Iterator[Connection]:
        """The connection to the session's backend, opened if no other user holds it."""
        # By process: a forked child must not share its parent's sockets.
        key = (os.getpid(), session.backend_url, session.credentials)
        with self._lock:
            connection, users = self._open.get(key, (None, 0))
            if connection is None:
                connection = Connection(credentials_of(session))
            self._open[key] = (connection, users + 1)
        try:
            yield connection
        finally:
            with self._lock:
                users = self._open[key][1] - 1
                if users:
                    self._open[key] = (connection, users)
                else:
                    del self._open[key]
            if not users:
                connection.close()


class AsyncConnections:
    """The connections of event loops. Each loop has its own, because loops cannot share one."""

    def __init__(self) -> None:
        self._open: dict[tuple[asyncio.AbstractEventLoop, str, str | None], _Opening] = {}

    @asynccontextmanager
    async def to(self, session: SessionAddress) -> AsyncIterator[AsyncConnection]:
        """The loop's connection to the session's backend, opened if no other user holds it."""
        key = (asyncio.get_running_loop(), session.backend_url, session.credentials)
        opening = self._open.get(key)
        if opening is None:
            opening = self._open[key] = _Opening(asyncio.ensure_future(_aconnect(session)))
        opening.users += 1
        try:
            # The cancellation of one user must not reach the others.
            yield await asyncio.shield(opening.connecting)
        finally:
            opening.users -= 1
            if not opening.users:
                del self._open[key]
                await opening.aclose()


@dataclass
class _Opening:
    """A connection that is open, or about to be."""

    connecting: asyncio.Task[AsyncConnection]
    users: int = 0

    async def aclose(self) -> None:
        if not self.connecting.done():
            self.connecting.cancel()
        elif not self.connecting.cancelled() and self.connecting.exception() is None:
            await self.connecting.result().aclose()


def connection_to(session: SessionAddress) -> AbstractContextManager[Connection]:
    """This process's shared connection to the session's backend.

    A function, because tasks are pickled with the objects they refer to, and connections cannot be.
    """
    return _shared.to(_handle(session))


def async_connection_to(session: SessionAddress) -> AbstractAsyncContextManager[AsyncConnection]:
    """This event loop's shared connection to the session's backend."""
    return _ashared.to(_handle(session))


_shared = Connections()
_ashared = AsyncConnections()


def credentials_of(session: SessionAddress) -> MiproCredentials:
    """The address and the key, found where the task runs."""
    if session.credentials is None:
        return _surroundings(session.backend_url)
    return _same_backend(load(MiproCredentials, session.credentials), session)


async def acredentials_of(session: SessionAddress) -> MiproCredentials:
    """The address and the key, found without blocking the event loop."""
    if session.credentials is None:
        return _surroundings(session.backend_url)
    return _same_backend(await aload(MiproCredentials, session.credentials), session)


def _handle(session: Any) -> SessionAddress:
    if isinstance(session, SessionAddress):
        return session
    raise InputInvalid(
        f"the session is of type {type(session).__name__}; give the handle that open_session "
        "returns, and to `.map` give unmapped(session)"
    )


def _surroundings(backend_url: str) -> MiproCredentials:
    """Credentials without a block. Raises KeyMissing for a remote backend without a key."""
    embedded = running_backend(backend_url)
    if embedded is not None:
        return MiproCredentials(backend_url=backend_url, api_key=embedded.api_key)
    key = environment.api_key(backend_url)
    return MiproCredentials(backend_url=backend_url, api_key=SecretStr(key) if key else None)


def _same_backend(credentials: MiproCredentials, session: SessionAddress) -> MiproCredentials:
    """The credentials, if they were saved with the session's address. Raises InputInvalid."""
    if backend_root(credentials.backend_url) != backend_root(session.backend_url):
        raise InputInvalid(
            f"the block {session.credentials!r} is for {credentials.backend_url}, the session "
            f"{session.session_id} is on {session.backend_url}; name the block of that backend"
        )
    return credentials


async def _aconnect(session: SessionAddress) -> AsyncConnection:
    return AsyncConnection(await acredentials_of(session))


class _Timeouts(NamedTuple):
    """Timeouts in seconds."""

    backend: float
    model: float


def _timeouts(credentials: MiproCredentials) -> _Timeouts:
    longest = max(credentials.timeout_seconds, MODEL_TIMEOUT_SECONDS)
    return _Timeouts(credentials.timeout_seconds, longest)
