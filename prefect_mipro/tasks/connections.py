"""From a session handle to open clients: where the key comes from, and who closes what."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from prefect_mipro.blocks import MiproCredentials, aload, load
from prefect_mipro.client import environment
from prefect_mipro.client.clients import AsyncClient, Client, backend_root
from prefect_mipro.embedded import running_backend
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import Record

URL_VARIABLE = "MIPRO_BACKEND_URL"

# A policy model may think for minutes where the backend itself answers at once.
MODEL_TIMEOUT_SECONDS = 600.0


class SessionHandle(Record):
    """What travels between tasks, is shown in Prefect and may be stored: no key, no secret URL.

    `credentials` is the name of a saved `MiproCredentials` block. Without one the key is that of
    the embedded backend, else `MIPRO_API_KEY` or `SYNTH_API_KEY` where the task runs.
    """

    session_id: str
    backend_url: str
    correlation_id: str | None = None
    credentials: str | None = None

    def proxy_url(self, rollout_id: str) -> str:
        """The base URL of one rollout for any OpenAI client; it asks for the key."""
        return f"{backend_root(self.backend_url)}{self.proxy_path(rollout_id)}"

    def proxy_path(self, rollout_id: str) -> str:
        """The same, from the backend's root."""
        return f"/api/mipro/v1/{self.session_id}/{rollout_id}"


@dataclass(frozen=True)
class Connection:
    """Clients for one backend: one for its operations, one for the model behind its proxy."""

    client: Client
    model: Client
    api_key: SecretStr | None

    def close(self) -> None:
        """Close both."""
        self.model.close()
        self.client.close()


@dataclass(frozen=True)
class AsyncConnection:
    """The same for one event loop."""

    client: AsyncClient
    model: AsyncClient
    api_key: SecretStr | None


class Connections:
    """The connections of one process, shared by its threads; each ends with its last user.

    Loading a block is a request to Prefect, and every new client a new TCP connection: a flow that
    holds a connection while its tasks run spares both for each of them. Nothing outlives its
    users, so there is nothing to clean up, and a rotated key is read anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[int, str, str | None], tuple[Connection, int]] = {}

    @contextmanager
    def to(self, session: SessionHandle) -> Iterator[Connection]:
        """The connection to the session's backend, opened when nobody holds it yet."""
        # By process: a forked child must not share its parent's sockets.
        key = (os.getpid(), session.backend_url, session.credentials)
        with self._lock:
            connection, users = self._open.get(key, (None, 0))
            if connection is None:
                connection = _connect(credentials_of(session))
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


def connection_to(session: SessionHandle) -> AbstractContextManager[Connection]:
    """The connection that this process shares.

    A function, because tasks are pickled with what they mention, and open connections cannot be.
    """
    return _shared.to(session)


_shared = Connections()


@asynccontextmanager
async def async_connection_to(session: SessionHandle) -> AsyncIterator[AsyncConnection]:
    """A connection for this event loop alone: loops cannot share one."""
    credentials = await acredentials_of(session)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(credentials.get_async_client())
        model = await stack.enter_async_context(_patient(credentials).get_async_client())
        yield AsyncConnection(client, model, credentials.api_key)


def credentials_of(session: SessionHandle) -> MiproCredentials:
    """The address and the key, found where the task runs."""
    if session.credentials is None:
        return _surroundings(session.backend_url)
    return _same_backend(load(MiproCredentials, session.credentials), session)


async def acredentials_of(session: SessionHandle) -> MiproCredentials:
    """The same, without blocking the event loop."""
    if session.credentials is None:
        return _surroundings(session.backend_url)
    return _same_backend(await aload(MiproCredentials, session.credentials), session)


def configured_backend_url() -> str | None:
    """`MIPRO_BACKEND_URL`, if it is set."""
    return os.environ.get(URL_VARIABLE) or None


def _surroundings(backend_url: str) -> MiproCredentials:
    """Raises KeyMissing where there is no key for a backend on another machine."""
    embedded = running_backend(backend_url)
    if embedded is not None:
        return MiproCredentials(backend_url=backend_url, api_key=embedded.api_key)
    key = environment.api_key(backend_url)
    return MiproCredentials(backend_url=backend_url, api_key=SecretStr(key) if key else None)


def _same_backend(credentials: MiproCredentials, session: SessionHandle) -> MiproCredentials:
    """A key goes to the address it was saved with, and to no other."""
    if backend_root(credentials.backend_url) != backend_root(session.backend_url):
        raise InputInvalid(
            f"the block {session.credentials!r} is for {credentials.backend_url}, the session "
            f"{session.session_id} is on {session.backend_url}; name the block of that backend"
        )
    return credentials


def _connect(credentials: MiproCredentials) -> Connection:
    return Connection(
        client=credentials.get_client(),
        model=_patient(credentials).get_client(),
        api_key=credentials.api_key,
    )


def _patient(credentials: MiproCredentials) -> MiproCredentials:
    longest = max(credentials.timeout_seconds, MODEL_TIMEOUT_SECONDS)
    return credentials.model_copy(update={"timeout_seconds": longest})
