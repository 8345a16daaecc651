"""A call to an upstream, as these tests make them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.patience import BackOff

BODY: ChatBody = {
    "model": "m",
    "messages": [{"role": "user", "content": "größer \u2028 🙂"}],
    "temperature": 0.0,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "unknown_to_us": {"a": [1, 2.5, None, True]},
}
AT_ONCE = BackOff(first_wait_seconds=0.0)


@contextlib.asynccontextmanager
async def upstream_at(url: str, **options: Any) -> AsyncIterator[OpenAIUpstream]:
    upstream = OpenAIUpstream(url, **{"back_off": AT_ONCE, **options})
    try:
        yield upstream
    finally:
        await upstream.close()


async def read(upstream: OpenAIUpstream, body: ChatBody = BODY) -> tuple[int, bytes]:
    async with upstream.chat(body) as reply:
        return reply.status, await reply.read()
