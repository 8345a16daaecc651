"""Streams are asked what they used: budgets need it, and callers mostly do not ask."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakSet

from pydantic import SecretStr

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.interface import Reply, Upstream

# What servers answer to a field that they do not know.
_REFUSALS = frozenset({400, 422})

logger = logging.getLogger(__name__)


def leaves_usage_open(body: ChatBody) -> bool:
    """Whether the call is for a stream and does not ask for its usage."""
    options = body.get("stream_options")
    return body.get("stream") is True and (
        options is None or (isinstance(options, dict) and not options.get("include_usage"))
    )


class UsageAsked:
    """Calls for streams, with the question what they used.

    An upstream that refuses the question is asked again without it, and from then on never: no
    call fails for what its caller did not send.
    """

    def __init__(self) -> None:
        self._unwilling: WeakSet[Upstream] = WeakSet()

    @asynccontextmanager
    async def chat(
        self, upstream: Upstream, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Reply]:
        """As the upstream's own `chat`. The body must be one that leaves the usage open."""
        asks = upstream not in self._unwilling
        async with AsyncExitStack() as call:
            sent = {**body, "stream_options": _asking(body)} if asks else body
            reply = await call.enter_async_context(upstream.chat(sent, api_key=api_key))
            if asks and reply.status in _REFUSALS:
                await call.aclose()
                reply = await call.enter_async_context(upstream.chat(body, api_key=api_key))
                if reply.status < 400:
                    self._unwilling.add(upstream)
                    logger.warning("upstream tells no usage of streams")
            yield reply


def _asking(body: ChatBody) -> dict[str, object]:
    return {**(body.get("stream_options") or {}), "include_usage": True}
