"""Answers of the backend as the values that operations return."""

from __future__ import annotations

from typing import Any

from prefect_mipro.errors import AnswerInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.reviews import DemonstrationReview
from prefect_mipro.models.rollouts import ExampleTrace, RolloutReport, Trace
from prefect_mipro.models.sessions import SessionStatus, SessionUrls


def with_urls(answer: JsonObject) -> JsonObject:
    """An answer with all three URLs filled in as far as one follows from another.

    `online_url` falls back to the older `proxy_url`, and `chat_completions_url` follows from it.
    What cannot be known is `None`.
    """
    proxy_url = _text(answer.get("proxy_url"))
    online_url = _text(answer.get("online_url")) or proxy_url
    chat_completions_url = _text(answer.get("chat_completions_url"))
    if online_url and not chat_completions_url:
        root = online_url.rstrip("/").removesuffix("/chat/completions")
        chat_completions_url = f"{root}/chat/completions"
    return {
        **answer,
        "proxy_url": proxy_url,
        "online_url": online_url,
        "chat_completions_url": chat_completions_url,
    }


def status_of(answer: JsonObject) -> SessionStatus:
    """A session's status."""
    return SessionStatus.model_validate(with_urls(answer))


def urls_of(answer: JsonObject) -> SessionUrls:
    """A session's URLs. Raises AnswerInvalid where there is none."""
    urls = with_urls(answer)
    if not urls["online_url"]:
        raise AnswerInvalid("Missing online_url in response")
    return SessionUrls.model_validate(
        {**urls, "proxy_url": urls["proxy_url"] or urls["online_url"]}
    )


def examples_of(answer: JsonObject) -> tuple[ExampleTrace, ...]:
    """Rewarded calls with their texts."""
    return tuple(map(ExampleTrace.model_validate, answer["items"]))


def reviews_of(answer: JsonObject) -> tuple[DemonstrationReview, ...]:
    """Demonstration sets and their reviews."""
    return tuple(map(DemonstrationReview.model_validate, answer["items"]))


def rollouts_of(answer: JsonObject) -> tuple[RolloutReport, ...]:
    """Rewarded rollouts."""
    return tuple(map(RolloutReport.model_validate, answer["items"]))


def traces_of(answer: JsonObject) -> tuple[Trace, ...]:
    """Recorded calls."""
    return tuple(map(Trace.model_validate, answer["items"]))


def as_it_is(answer: JsonObject) -> JsonObject:
    """An answer of which nothing is known but that it is JSON."""
    return answer


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
