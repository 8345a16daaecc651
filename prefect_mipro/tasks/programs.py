"""What the user brings: examples, programs and reward functions, and a rollout made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from numbers import Real
from typing import Any, Literal

from prefect_mipro.errors import (
    KeyRejected,
    ModelMissing,
    NotFound,
    PaymentRequired,
    RewardInvalid,
)
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.placeholders import fields_of
from prefect_mipro.tasks.live import AsyncLiveRollout, LiveRollout

# Errors that the next rollout would meet as well: going on would only hide them.
HOPELESS = (KeyRejected, ModelMissing, NotFound, PaymentRequired, RewardInvalid)
EXAMPLE_ID_KEYS = ("example_id", "id", "seed")


class Judgement(Record):
    """What a reward function may say beyond a number.

    `expected` is the right answer, where it is known: it becomes a demonstration even when the
    program's own answer was wrong.
    """

    score: float
    feedback: str | None = None
    expected: str | None = None
    metadata: JsonObject | None = None


Example = Any
Answer = Any
Program = Callable[[LiveRollout, Example], Answer]
AsyncProgram = Callable[[AsyncLiveRollout, Example], Awaitable[Answer]]
OnError = Literal["raise", "no_reward"] | float
Reward = Callable[[Example, Answer], float | tuple[float, str] | Judgement]


@dataclass(frozen=True)
class RolloutJob:
    """One rollout to be run. The same id again is a repeat, not another rollout."""

    example: Example
    rollout_id: str
    example_id: str | None = None
    stop: bool = False

    @classmethod
    def of(
        cls,
        example: Example,
        rollout_id: str,
        *,
        example_id: str | int | None = None,
        stop: bool = False,
    ) -> RolloutJob:
        """With the example's id: the caller's, else what the example says about itself."""
        fields = fields_of(example) if example_id is None else None
        if fields is not None:
            told = (fields.get(key) for key in EXAMPLE_ID_KEYS)
            example_id = next((value for value in told if value is not None), None)
        return cls(example, rollout_id, None if example_id is None else str(example_id), stop)


def judgement(value: object) -> Judgement:
    """What a reward function returned, in one form. Raises RewardInvalid."""
    match value:
        case Judgement():
            return value
        case (Real() | Decimal() as score, str(feedback)) if isfinite(score):
            return Judgement(score=float(score), feedback=feedback)
        case Real() | Decimal() if isfinite(value):
            return Judgement(score=float(value))
    raise RewardInvalid(
        f"the reward is {value!r:.80}; give or return a finite number, a pair of number and "
        "feedback, or a Judgement"
    )
