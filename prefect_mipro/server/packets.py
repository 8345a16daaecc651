"""What is written in one turn of the event loop leaves in one packet.

uvicorn writes the head of an answer and its body one after the other, and each write is a system
call, a packet, and a caller that is woken up.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's own, on a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Gathering(transport, self.loop))


class _Gathering:
    """A transport that holds what is written back until more comes, or the turn ends."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._turn_ends: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, piece: bytes) -> None:
        if self._turn_ends is None:
            self._held = piece
            self._turn_ends = self._loop.call_soon(self._flush)
        else:
            self._held += piece
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._turn_ends is not None:
            self._turn_ends.cancel()
            self._turn_ends = None
            self._transport.write(self._held)
            self._held = b""
