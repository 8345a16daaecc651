"""Types of the user's examples, programs and reward functions, and the rollout made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from prefect_mipro.errors import KeyRejected, ModelMissing, NotFound, PaymentRequired
from prefect_mipro.models.judgements import RewardValue
from prefect_mipro.models.rows import example_id_of, fields_of
from prefect_mipro.tasks.live_rollouts import AsyncLiveRollout, LiveRollout

# Errors that every further rollout would meet as well.
HOPELESS = (KeyRejected, ModelMissing, NotFound, PaymentRequired)


Example = Any
Answer = Any
Program = Callable[[LiveRollout, Example], Answer]
AsyncProgram = Callable[[AsyncLiveRollout, Example], Awaitable[Answer]]
OnError = Literal["raise", "no_reward"] | float
Reward = Callable[[Example, Answer], RewardValue]


@dataclass(frozen=True)
class RolloutJob:
    """A rollout to run. The same id again is a repeat, not another rollout.

    `stop` ends the session with its reward. `shareable` allows its texts to be shown to other users
    as a worked example.
    """

    example: Example
    rollout_id: str
    example_id: str | None = None
    stop: bool = False
    shareable: bool = False

    @classmethod
    def of(
        cls,
        example: Example,
        rollout_id: str,
        *,
        example_id: str | int | None = None,
        stop: bool = False,
        shareable: bool = False,
    ) -> RolloutJob:
        """A job with the example's id: the given one, else the example's own, if it has one."""
        fields = fields_of(example) if example_id is None else None
        if fields is not None:
            example_id = example_id_of(fields)
        known = None if example_id is None else str(example_id)
        return cls(example, rollout_id, known, stop, shareable)
