"""What calls under way may use of a session's budgets, so that many at once cannot overrun them."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.chat import ChatBody, ChatMessage, Usage
from prefect_mipro.server.services.live import NOTHING, LiveSession, Reserved

# A token of text is at least three bytes long, but for rare scripts.
BYTES_PER_TOKEN = 3

# Where neither the call nor the session says how long an answer may be.
COMPLETION_TOKENS = 1_000


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
    """What a call has used whose upstream did not say: its tokens by the length of the texts."""
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
