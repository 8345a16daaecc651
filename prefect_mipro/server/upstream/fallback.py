"""Another model for the calls that the first one fails before its answer begins."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import SecretStr

from prefect_mipro.errors import Overloaded, UpstreamFailed
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.interface import Reachable, Reply, Upstream, UpstreamCounts
from prefect_mipro.server.upstream.openai import OpenAIUpstream

logger = logging.getLogger(__name__)


class Fallback:
    """`first`; and `model` of `second` once, when all repeats of the first have failed.

    Failed is a status of 429 or from 500 on, an upstream out of reach or too slow, and a limit of
    ours. A caller's own key goes to no other provider, so its calls fall back where the second
    upstream is the first one itself.
    """

    def __init__(self, first: OpenAIUpstream, second: Upstream, *, model: str) -> None:
        self._first = first
        self._second = second
        self._model = model

    @property
    def counts(self) -> UpstreamCounts:
        """The counts of the first upstream, and how often it was replaced."""
        return self._first.counts

    def __repr__(self) -> str:
        return f"Fallback({self._first!r}, {self._second!r}, model={self._model!r})"

    @asynccontextmanager
    async def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Reply]:
        """The first upstream's answer, else the second one's, which names its `model`."""
        possible = api_key is None or self._second is self._first
        async with AsyncExitStack() as call:
            reply: Reply | None = None
            try:
                reply = await call.enter_async_context(self._first.chat(body, api_key=api_key))
                failure = str(reply.status) if _refused(reply.status) else ""
            except (UpstreamFailed, Overloaded) as error:
                if not possible:
                    raise
                failure = type(error).__name__
            if reply is None or (failure and possible):
                await call.aclose()
                self.counts.fallbacks += 1
                logger.warning(
                    "upstream fell back", extra={"outcome": failure, "model": self._model}
                )
                reply = await call.enter_async_context(
                    self._second.chat({**body, "model": self._model}, api_key=api_key)
                )
                reply.model = self._model
            yield reply

    async def unreachable(self, *, longest_seconds: float) -> str:
        """Why the first upstream is out of reach; empty where the second one is not."""
        why = await self._first.unreachable(longest_seconds=longest_seconds)
        if why and isinstance(self._second, Reachable):
            return await self._second.unreachable(longest_seconds=longest_seconds) and why
        return why

    async def close(self) -> None:
        """Close the first one; the second belongs to its own provider."""
        await self._first.close()


def _refused(status: int) -> bool:
    return status == 429 or status >= 500
