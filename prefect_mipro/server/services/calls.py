"""One proxied call: what came in, and the answer under way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pydantic import SecretStr

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.services.completions import Completion, read, require_completion
from prefect_mipro.server.upstream.interface import Reply


@dataclass(frozen=True)
class Call:
    """One proxied call as it came in.

    `candidate_id` asks for that candidate outside of learning: nothing is pinned, counted or
    remembered, and no reward is expected. Held-out evaluation uses it. `provider_key` is the
    caller's own key for the upstream: for this call only, kept nowhere.
    """

    body: ChatBody
    rollout_id: str | None = None
    correlation_id: str | None = None
    example_id: str | None = None
    candidate_id: str | None = None
    provider_key: SecretStr | None = None


@dataclass
class Served:
    """An answer under way: the candidate that made it, the upstream's status, the body to come."""

    candidate_id: str
    rollout_id: str
    reply: Reply
    _seen: bytearray = field(default_factory=bytearray)

    @property
    def status(self) -> int:
        """The upstream's HTTP status."""
        return self.reply.status

    @property
    def content_type(self) -> str:
        """The upstream's content type."""
        return self.reply.content_type

    @property
    def retry_after_seconds(self) -> float | None:
        """When the upstream asks to come back."""
        return self.reply.retry_after_seconds

    async def read(self) -> bytes:
        """The whole body. A success that is not a chat completion raises UpstreamFailed."""
        body = await self.reply.read()
        self._seen += body
        if self.status == 200:
            require_completion(body)
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        async for chunk in self.reply.chunks():
            self._seen += chunk
            yield chunk

    @property
    def completion(self) -> Completion:
        """What has arrived so far, read as a chat completion."""
        return read(bytes(self._seen), content_type=self.content_type)
