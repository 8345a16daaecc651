"""What an upstream's answer says, read from the bytes that passed through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from prefect_mipro.errors import CompletionInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.leases import MOST_TOKENS


@dataclass(frozen=True)
class Completion:
    """A chat completion as far as it could be read. `error` says why it could not."""

    response: JsonObject | None = None
    error: str = ""

    @property
    def usage(self) -> Usage:
        """The tokens the upstream counted; zero where it did not say a number that can be."""
        told = (self.response or {}).get("usage")
        if not isinstance(told, dict):
            return Usage()
        return Usage(
            prompt_tokens=_count(told.get("prompt_tokens")),
            completion_tokens=_count(told.get("completion_tokens")),
        )

    @property
    def model(self) -> str | None:
        """The model that the answer names."""
        named = (self.response or {}).get("model")
        return named if isinstance(named, str) else None


def require_completion(completion: Completion) -> None:
    """Raise CompletionInvalid unless the body of a successful answer is a chat completion."""
    if completion.error:
        raise CompletionInvalid(f"the model's server answered nonsense: {completion.error}")


def read(body: bytes) -> Completion:
    """The completion that a whole body holds."""
    try:
        answer = parsed(body)
    except ValueError:
        return Completion(error=f"not JSON but {body[:80]!r}")
    if not isinstance(answer, dict):
        return Completion(error=f"JSON, but not an object: {body[:80]!r}")
    if answer.get("error"):
        return Completion(response=answer, error=failure_of(answer))
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return Completion(response=answer, error="an object without choices")
    return Completion(response=answer)


def failure_of(answer: JsonObject) -> str:
    """What an answer says that has an `error`."""
    return f"an error: {str(answer['error'])[:200]}"


def parsed(text: bytes) -> Any:
    """The JSON value. Raises ValueError."""
    try:
        return orjson.loads(text)
    except ValueError:
        try:
            return json.loads(text)  # takes NaN, which some servers send
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= MOST_TOKENS else 0
