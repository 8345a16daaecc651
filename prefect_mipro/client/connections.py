"""The open connections behind sessions: closed with the session, or with the event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator
from typing import NamedTuple

from prefect_mipro.client import environment
from prefect_mipro.client.clients import AsyncClient, Client


class Backend(NamedTuple):
    """What distinguishes one connection from another."""

    url: str
    key: str
    timeout_seconds: float


class Connections:
    """An owner's clients for threads. They are closed when the owner is gone."""

    def __init__(self, owner: object) -> None:
        self._clients: dict[Backend, Client] = {}
        weakref.finalize(owner, _close, self._clients)

    def to(self, backend: Backend) -> Client:
        """The client of that backend, made on first use."""
        if client := self._clients.get(backend):
            return client
        made = Client(
            backend.url,
            backend.key,
            timeout_seconds=backend.timeout_seconds,
            headers=environment.identity_headers(),
        )
        # Another thread may have been quicker. Unused, ours has nothing to close.
        return self._clients.setdefault(backend, made)


async def connected(backend: Backend) -> AsyncClient:
    """The running event loop's client of that backend, which all sessions in the loop share."""
    loop = asyncio.get_running_loop()
    kept = _kept.setdefault(loop, {})
    if backend not in kept:
        client = AsyncClient(
            backend.url,
            backend.key,
            timeout_seconds=backend.timeout_seconds,
            headers=environment.identity_headers(),
        )
        kept[backend] = client, (keeper := _keep_open(client, loop))
        await anext(keeper)
    client, _ = kept[backend]
    return client


async def _keep_open(client: AsyncClient, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
    """Suspended until the loop ends: a loop closes its open generators, and with it the client."""
    async with client:
        try:
            yield
        finally:
            _kept.pop(loop, None)


def _close(clients: dict[Backend, Client]) -> None:
    for client in clients.values():
        client.close()


_Kept = dict[Backend, tuple[AsyncClient, AsyncGenerator[None]]]
_kept: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Kept] = weakref.WeakKeyDictionary()
