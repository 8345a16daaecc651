"""Failures because of the prompt: refusals, and answers that hardly anyone can use.

An outage (5xx, 429, a time-out, a broken connection) says nothing about the prompt, and neither
does a refusal of the caller (key, quota, unknown model). Other refusals may be the caller's own
fault too; whether they are is seen by comparison with the caller's own prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.rollouts import FailureKind
from prefect_mipro.server.upstream.completions import Completion

PROMPT_STATUSES = frozenset({400, 413, 414, 422})
# Providers moderate under other statuses, too.
MODERATION_STATUSES = frozenset({403, 451})

_FILTERED = frozenset(
    {"content_filter", "safety", "recitation", "blocklist", "prohibited_content", "refusal"}
)
_CUT = frozenset({"length", "max_tokens"})
# Parts of a message that hold an answer.
_ANSWERS = ("content", "tool_calls", "function_call", "audio")
_CODE = re.compile(r"[\w.:-]{1,64}")
_MODERATED = re.compile(r"content.?(filter|policy|management)|moderation|flagged", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size|exceeded)"
    r"|(prompt|input|request|messages?).{0,20}too (long|large)"
    r"|too many.{0,10}tokens|maximum.{0,20}(length|tokens)|exceeds?.{0,40}(tokens|context)"
    r"|reduce the length|string_above_max_length",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d[\d,]*")
_SMALLEST_LIMIT = 16


@dataclass(frozen=True)
class PromptFailure:
    """A failure because of the prompt, in words that may be shown.

    `too_long` says that the prompt passes the model's context, and `fits` which share of it would
    fit, where the refusal names both numbers.
    """

    kind: FailureKind
    reason: str
    too_long: bool = False
    fits: float | None = None


def prompt_failure(status: int, completion: Completion) -> PromptFailure | None:
    """The failure of an answer because of its prompt; `None` if there is none."""
    response = completion.response or {}
    if status >= 400:
        return _refusal(status, response)
    if response.get("error"):
        # Some servers begin a stream before they read the prompt.
        status = _status_of(response["error"])
        return _refusal(status, response) if status else None
    if completion.error:
        return None
    choices = [choice for choice in response.get("choices") or () if isinstance(choice, dict)]
    return _spoilt(choices) if choices else None


def _refusal(status: int, response: JsonObject) -> PromptFailure | None:
    error = response.get("error")
    texts = list(_texts(error))
    moderated = status in MODERATION_STATUSES and any(map(_MODERATED.search, texts))
    if status not in PROMPT_STATUSES and not moderated:
        return None
    code = next(filter(_CODE.fullmatch, texts), "") if isinstance(error, dict) else ""
    too_long = status == 413 or any(map(_TOO_LONG.search, texts))
    return PromptFailure(
        FailureKind.REFUSED,
        f"status {status}" + (f" ({code})" if code else ""),
        too_long=too_long,
        fits=_fitting_share(texts) if too_long else None,
    )


def _spoilt(choices: list[JsonObject]) -> PromptFailure | None:
    """The fault that all choices share, as the first one has it."""
    reasons = [str(choice.get("finish_reason") or "").lower() for choice in choices]
    messages = [m if isinstance(m := choice.get("message"), dict) else {} for choice in choices]
    answered = any(_has_answer(message) for message in messages)
    if all(reason in _FILTERED for reason in reasons):
        return PromptFailure(FailureKind.FILTERED, f"the answer ended with {reasons[0]}")
    if not answered and any(message.get("refusal") for message in messages):
        return PromptFailure(FailureKind.FILTERED, "the model refused to answer")
    if not answered:
        return PromptFailure(FailureKind.EMPTY, "the answer was empty")
    if all(reason in _CUT for reason in reasons):
        return PromptFailure(FailureKind.CUT, "the answer was cut at its longest length")
    return None


def _has_answer(message: JsonObject) -> bool:
    values = (message.get(name) for name in _ANSWERS)
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _status_of(error: object) -> int:
    """The status that an error in the middle of an answer names; 0 for none."""
    if not isinstance(error, dict):
        return 0
    for name in ("status", "code", "status_code"):
        value = error.get(name)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    texts = list(_texts(error))
    return 400 if any(map(_TOO_LONG.search, texts)) or any(map(_MODERATED.search, texts)) else 0


def _texts(error: Any) -> Iterator[str]:
    """The texts of an error, its code first."""
    if isinstance(error, dict):
        for name in ("code", "type", "message"):
            value = error.get(name)
            if isinstance(value, str):
                yield value
    elif isinstance(error, str):
        yield error


def _fitting_share(texts: list[str]) -> float | None:
    """The limit as a share of what was sent, from the two largest numbers in the text."""
    told = {int(number.replace(",", "")) for text in texts for number in _NUMBER.findall(text)}
    numbers = sorted(number for number in told if number >= _SMALLEST_LIMIT)
    return numbers[-2] / numbers[-1] if len(numbers) >= 2 else None
