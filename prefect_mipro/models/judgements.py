"""Judgements: what a rollout is worth, in whichever form a metric returns it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, SupportsFloat, runtime_checkable

from pydantic import BeforeValidator, ValidationError
from pydantic_core import ErrorDetails

from prefect_mipro.errors import RewardInvalid
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.rows import fields_of, is_missing

SCORE_KEYS = ("score", "outcome_reward", "reward")

# Relative to the width of the range: similarities and weighted sums come out as
# 1.0000000000000002, in single precision as 1.0000001.
ROUNDING = 1e-6


def score_of(value: object, *, name: str = "the reward") -> float:
    """The finite number that a value stands for.

    Numbers of any library count, and so do booleans, arrays and tensors without dimensions. Text
    does not. Raises RewardInvalid, which calls the value `name`.
    """
    number = math.nan if is_missing(value) else _number(value)
    if math.isfinite(number):
        return number
    raise RewardInvalid(
        f"{name} is {_shown(value)}; give or return a finite number, a pair of number and "
        f"feedback, a mapping or record with a score, or a Judgement{_hint(value)}"
    )


def within(score: float, reward_range: tuple[float, float]) -> float:
    """The score, or the border of the range that it exceeds by a rounding.

    Raises RewardInvalid for a score further outside.
    """
    low, high = reward_range
    slack = ROUNDING * (high - low)
    if not low - slack <= score <= high + slack:
        raise RewardInvalid(
            f"the score {score} is outside [{low}, {high}]; "
            "set prompt_learning.mipro.reward_range to the range of your rewards"
        )
    return min(high, max(low, score))


def _text_or_none(value: object) -> object:
    return None if is_missing(value) else value


class Judgement(Record):
    """What a reward function may say beyond a number.

    `expected` is the right answer, where it is known: it becomes a demonstration even when the
    program's own answer was wrong.
    """

    score: Annotated[float, BeforeValidator(score_of)]
    feedback: Annotated[str | None, BeforeValidator(_text_or_none)] = None
    expected: Annotated[str | None, BeforeValidator(_text_or_none)] = None
    metadata: JsonObject | None = None


@runtime_checkable
class Scored(Protocol):
    """A record with a score, such as a named tuple or a dataclass; it may have feedback."""

    @property
    def score(self) -> SupportsFloat: ...


RewardValue = (
    SupportsFloat | tuple[SupportsFloat, str | None] | Mapping[str, Any] | Scored | Judgement
)


def judgement(value: object) -> Judgement:
    """What a reward function returned, in one form. Raises RewardInvalid."""
    if isinstance(value, Judgement):
        return value
    try:
        return Judgement.model_validate(_fields(value))
    except ValidationError as error:
        raise RewardInvalid("; ".join(map(_sentence, error.errors()))) from None


def _fields(value: object) -> dict[str, Any]:
    """The fields of the judgement that the value stands for."""
    fields = fields_of(value)
    if fields is not None:
        score = next((fields[key] for key in SCORE_KEYS if fields.get(key) is not None), value)
        named = ("feedback", "expected", "metadata")
        return {"score": score} | {name: fields.get(name) for name in named}
    if hasattr(value, "score"):
        return {name: getattr(value, name, None) for name in ("score", "feedback", "expected")}
    match value:
        case (score, feedback):
            return {"score": score, "feedback": feedback}
    return {"score": value}


def _number(value: object) -> float:
    """NaN for what is no number."""
    try:
        plain = value.item() if _is_scalar(value) else value  # type: ignore[attr-defined]
        return float(plain) if isinstance(plain, SupportsFloat) and not _axes(plain) else math.nan
    except (ArithmeticError, RuntimeError, TypeError, ValueError):
        return math.nan


def _is_scalar(value: object) -> bool:
    """Whether the value is a scalar, an array or a tensor without dimensions."""
    return hasattr(value, "item") and _axes(value) == 0


def _axes(value: object) -> int | None:
    axes = getattr(value, "ndim", None)
    return axes if isinstance(axes, int) else None


def _hint(value: object) -> str:
    if is_missing(value):
        return "; raise an error, or leave the rollout out, where there is nothing to judge"
    if _axes(value):
        return f"; of an array with {_axes(value)} dimensions return one number, such as its mean"
    if isinstance(value, str):
        return "; of a text return float(text)"
    return ""


def _shown(value: object) -> str:
    # Python does not write integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > sys.float_info.max_exp:
        return "too large"
    return f"{' '.join(repr(value).split()):.80}"


def _sentence(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["loc"] == ("score",):
        return message
    name = ".".join(map(str, problem["loc"]))
    return f"the {name} of the reward is {_shown(problem['input'])}; give text or leave it out"
