"""One proxied call: what came in, the answer under way, its share of the session's budget."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import SecretStr

from prefect_mipro.errors import InputInvalid, UpstreamUnreachable
from prefect_mipro.models.chat import ChatBody, ChatMessage, Usage
from prefect_mipro.server.services.session_cache import NOTHING, LiveSession, Reserved
from prefect_mipro.server.telemetry.calls import MeteredCall, unread
from prefect_mipro.server.upstream.completions import Completion, read, require_completion
from prefect_mipro.server.upstream.events import Events, is_stream, says_something
from prefect_mipro.server.upstream.interface import Reply
from prefect_mipro.server.upstream.refusals import openai_refusal

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

# A token of text is at least three bytes long, but for rare scripts.
BYTES_PER_TOKEN = 3

# Where neither the call nor the session says how long an answer may be.
COMPLETION_TOKENS = 1_000


def prompt_word(*, applied: bool) -> str:
    """What an answer's header says about the candidate's prompt."""
    return "applied" if applied else "as-sent"


@dataclass(frozen=True)
class Call:
    """One proxied call as it came in.

    `candidate_id` asks for that candidate outside of learning: nothing is pinned, counted or
    remembered, and no reward is expected. Held-out evaluation uses it. `provider_key` is the
    caller's own key for the upstream: for this call only, kept nowhere. `metered` is told how far
    the call has come.
    """

    body: ChatBody
    rollout_id: str | None = None
    correlation_id: str | None = None
    example_id: str | None = None
    candidate_id: str | None = None
    provider_key: SecretStr | None = None
    metered: MeteredCall = field(default_factory=unread)

    @property
    def learns(self) -> bool:
        """Whether it is a rollout of the session's own."""
        return self.candidate_id is None


class Served:
    """An answer under way: the candidate that made it, the upstream's status, the body to come.

    `headers` are those that are worth passing on. `started` is when the upstream was called, by
    the `timer`. `prompt_applied` says that the candidate's prompt took the baseline's place; else
    the messages went to the upstream as they came. `stream` says that a stream was asked for. After
    a fallback `failed_candidate_id` names the candidate that failed.
    """

    def __init__(
        self,
        candidate_id: str,
        rollout_id: str,
        reply: Reply,
        *,
        prompt_applied: bool,
        started: float,
        stream: bool = False,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.candidate_id = candidate_id
        self.rollout_id = rollout_id
        self.prompt_applied = prompt_applied
        self.status = reply.status
        self.is_refusal = reply.status >= 400
        self.headers: Mapping[str, str] = reply.headers
        self.size_bytes = 0
        self.first_byte_seconds: float | None = None
        self.failed_candidate_id: str | None = None
        self._reply = reply
        self._started = started
        self._stream = stream
        self._is_stream: bool | None = None
        self._timer = timer
        self._body: bytes | None = None
        self._whole: Completion | None = None
        self._events: Events | None = None

    async def is_stream(self) -> bool:
        """Whether the answer is a stream of events.

        OpenAI's client reads what it asked for, whatever its type is; so the body decides where the
        type does not say it.
        """
        if self._is_stream is None:
            self._is_stream = not self.is_refusal and (
                self._reply.content_type.lower().startswith(EVENT_STREAM)
                or (self._stream and await self._begins_with_events())
            )
        return self._is_stream

    async def require_events(self) -> None:
        """Wait until the stream says something. Raises CompletionInvalid if it ends before."""
        if not says_something(await self._reply.peek(says_something)):
            require_completion(Completion(error="a stream without events"))

    async def _begins_with_events(self) -> bool:
        beginning = await self._reply.peek(lambda text: is_stream(text) is not None)
        return bool(is_stream(beginning))

    @property
    def content_type(self) -> str:
        """The upstream's content type; JSON for a refusal, and by the body where there is none."""
        if self.is_refusal:
            return JSON
        return self._reply.content_type or (EVENT_STREAM if self._is_stream else JSON)

    async def read(self) -> bytes:
        """The whole body: the upstream's own bytes, those of a refusal in OpenAI's shape.

        A success that is not a chat completion raises CompletionInvalid.
        """
        if self._body is not None:
            return self._body
        self.first_byte_seconds = self._timer() - self._started
        body = await self._reply.read()
        if self.is_refusal:
            body = openai_refusal(body, status=self.status)
        self.size_bytes = len(body)
        self._whole = read(body)
        if not self.is_refusal:
            require_completion(self._whole)
        self._body = body
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the events as they arrive. `first_byte_seconds` is the time to the first token.

        Raises UpstreamUnreachable after a stream that was not over when it ended.
        """
        events = self._events = Events(self._reply.usage, keys=self._reply.keys)
        async for chunk in self._reply.chunks():
            self.size_bytes += len(chunk)
            whole = events.feed(chunk)
            if self.first_byte_seconds is None and events.has_content:
                self.first_byte_seconds = self._timer() - self._started
            if whole:
                yield whole
        rest = events.end()
        if not events.is_complete:
            raise UpstreamUnreachable("the model's server ended its stream in mid-answer")
        if rest:
            yield rest

    @property
    def is_fallback(self) -> bool:
        """Whether another model answered than the one that was asked."""
        return self._reply.model is not None

    @property
    def completion(self) -> Completion:
        """What has arrived so far, read as a chat completion."""
        if self._events is not None:
            return self._events.completion
        return self._whole or Completion(error="the caller went away")

    @property
    def model(self) -> str | None:
        """The model that answered: the fallback, or the one that the answer names."""
        return self._reply.model or self.completion.model


def reserve(live: LiveSession, body: ChatBody) -> Reserved:
    """Hold what the call may use at most. The caller gives it back when the call is counted.

    Raises InputInvalid where the session has a budget of money, and the model no known price.
    """
    limits = live.config.prompt_learning.termination_config
    if limits.max_tokens is None and limits.max_cost_usd is None:
        return NOTHING
    usage = most_usage(live, body)
    model = text_or_none(body.get("model")) or live.config.policy.model
    cost_usd = live.config.call_cost_usd(model, usage)
    if cost_usd is None and limits.max_cost_usd is not None and not live.session.state.final:
        raise InputInvalid(
            f"the session has a budget of {limits.max_cost_usd:g} US dollars, and nobody knows "
            f"what the model {model!r} costs; tell its price in prompt_learning.prices, or ask for "
            "a model whose price is told there",
            status=400,
        )
    own = Reserved(usage.prompt_tokens + usage.completion_tokens, cost_usd or 0.0)
    live.reserved += own
    return own


def most_usage(live: LiveSession, body: ChatBody) -> Usage:
    """The most that a call is expected to use."""
    policy = live.config.policy.max_completion_tokens or COMPLETION_TOKENS
    told = body.get("max_completion_tokens") or body.get("max_tokens")
    return Usage(
        prompt_tokens=sum(map(_bytes, body["messages"])) // BYTES_PER_TOKEN + 1,
        completion_tokens=_count(told, policy) * _count(body.get("n"), 1),
    )


def likely_usage(messages: Sequence[ChatMessage], answer: str) -> Usage:
    """An estimate of a call's tokens by the length of its texts, where the upstream told none."""
    return Usage(
        prompt_tokens=sum(map(_bytes, messages)) // BYTES_PER_TOKEN + 1,
        completion_tokens=-(-len(answer.encode("utf-8", "replace")) // BYTES_PER_TOKEN),
    )


def text_or_none(value: object) -> str | None:
    """The value, if it is text."""
    return value if isinstance(value, str) else None


def _bytes(message: ChatMessage) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return sum(len(str(part.get("text") or "").encode("utf-8", "replace")) for part in parts)


def _count(told: object, otherwise: int) -> int:
    return told if isinstance(told, int) and told > 0 else otherwise
