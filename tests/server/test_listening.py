"""Connections that come all at once."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import uvloop

from prefect_mipro.server.__main__ import ACCEPTED_IN_A_TURN, copies

CONNECTIONS = 10 * ACCEPTED_IN_A_TURN


def test_a_flood_of_connections_is_taken_in_a_few_turns_of_the_loop() -> None:
    """With one in a turn they waited for seconds, where 429 should tell them to come back."""

    async def turns(callers: ExitStack) -> int:
        accepted: list[asyncio.BaseTransport] = []

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.append(transport)

        listener = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS)
        loop = asyncio.get_running_loop()
        servers = [
            await loop.create_server(Accepting, sock=each, backlog=CONNECTIONS)
            for each in (listener, *copies(listener))
        ]
        for _ in range(CONNECTIONS):
            callers.enter_context(socket.create_connection(listener.getsockname()))
        taken = 0
        while len(accepted) < CONNECTIONS:
            await asyncio.sleep(0)
            taken += 1
        for transport in accepted:
            transport.close()
        for server in servers:
            server.close()
            await server.wait_closed()
        return taken

    with ExitStack() as callers, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns(callers)) < CONNECTIONS / 4
