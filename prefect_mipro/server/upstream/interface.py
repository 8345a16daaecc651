"""What the server asks of a model, wherever the model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import SecretStr

from prefect_mipro.models.chat import ChatBody

# The provider that is meant where none is named, and that stands in for unknown names.
DEFAULT = "default"


@dataclass
class UpstreamCounts:
    """What became of the calls to one provider so far, and how many are there now.

    `calls` are all that have begun and not ended, `waiting` those of them that wait for a limit;
    `refused` were too many for it. `repeats` are counted by what went before: `unreachable`, `429`
    or `5xx`.
    """

    calls: int = 0
    waiting: int = 0
    refused: int = 0
    fallbacks: int = 0
    repeats: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        """Calls that the provider is busy with."""
        return self.calls - self.waiting

    def __add__(self, other: UpstreamCounts) -> UpstreamCounts:
        return UpstreamCounts(
            calls=self.calls + other.calls,
            waiting=self.waiting + other.waiting,
            refused=self.refused + other.refused,
            fallbacks=self.fallbacks + other.fallbacks,
            repeats=self.repeats + other.repeats,
        )


@runtime_checkable
class Counted(Protocol):
    """An upstream that counts its calls."""

    @property
    def counts(self) -> UpstreamCounts: ...


@runtime_checkable
class Reachable(Protocol):
    """An upstream that can be asked whether calls would reach it, at no cost."""

    async def unreachable(self, *, longest_seconds: float) -> str:
        """Why calls would fail, without an address; empty when they would not."""
        ...


@dataclass
class StreamedUsage:
    """What a stream tells of its usage, filled in as the events come.

    `hidden` means that the caller did not ask for it. `told` means that an event had it, and
    `announced` that events before that one said `"usage": null`. `ended` is set once nothing more
    can come.
    """

    hidden: bool = False
    told: bool = False
    announced: bool = False
    ended: bool = False


class Reply(Protocol):
    """One answer of a model: status and headers at once, the body when asked.

    `content_type` is as the model's server sent it, parameters included, without the keys. `model`
    names the model that answered in place of the one that was asked, after a fallback; otherwise it
    is `None`. `usage` is for the reader of a stream.
    """

    status: int
    content_type: str
    retry_after_seconds: float | None
    model: str | None
    usage: StreamedUsage

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers worth passing on, by their names in lower case, all in ASCII.

        Those are `retry-after`, `x-should-retry`, the ids of the request and the rate limits.
        """
        ...

    @property
    def keys(self) -> Collection[bytes]:
        """The keys that the request held, which no answer may quote to a caller."""
        ...

    async def peek(self, enough: Callable[[bytes], bool]) -> bytes:
        """The beginning of the body, as far as `enough`. `read` and `chunks` still have it."""
        ...

    async def read(self) -> bytes:
        """The whole body, without the keys."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body in raw pieces as they arrive, cut anywhere, with the keys if it quotes any.

        Server-sent events when the request's body says `"stream": true`.
        """
        ...


class Upstream(Protocol):
    """A model that answers chat completions."""

    def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AbstractAsyncContextManager[Reply]:
        """One call; leaving the context cancels it when it is unfinished.

        `api_key` is the caller's own key for this one call, in place of the provider's. An answer
        that the model's server refuses is a reply with that status, not an error. Entering raises
        UpstreamUnreachable, UpstreamTimedOut, Overloaded, ModelMissing or KeyRejected; the first
        two may also come from reading the body.
        """
        ...

    async def close(self) -> None:
        """Free what the upstream holds. Calls under way break off."""
        ...
