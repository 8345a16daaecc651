"""What the server asks of a model, wherever the model runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from prefect_mipro.models.chat import ChatBody


class Reply(Protocol):
    """One answer of a model: status and headers at once, the body when asked.

    `content_type` is as the model's server sent it, parameters included.
    """

    status: int
    content_type: str
    retry_after_seconds: float | None

    async def read(self) -> bytes:
        """The whole body."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body in raw pieces as they arrive, cut anywhere.

        Server-sent events when the request's body says `"stream": true`.
        """
        ...


class Upstream(Protocol):
    """A model that answers chat completions."""

    def chat(self, body: ChatBody) -> AbstractAsyncContextManager[Reply]:
        """One call; leaving the context cancels it when it is unfinished.

        An answer that the model's server refuses is a reply with that status, not an error.
        Entering raises UpstreamUnreachable, UpstreamTimedOut, Overloaded or ModelMissing; so may
        reading the body.
        """
        ...

    async def close(self) -> None:
        """Free what the upstream holds. Calls under way break off."""
        ...
