"""The handle of a session, with the blocks that open rollouts and keep connections open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

from prefect_mipro.tasks.connections import async_connection_to, connection_to
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.open_rollouts import AsyncReward, RolloutBlock
from prefect_mipro.tasks.programs import OnError, Reward


class SessionHandle(SessionAddress):
    """A session as tasks take and return it: no key, no secret URL, so Prefect may store it.

    `credentials` is the name of a saved `MiproCredentials` block. Without one, the key comes from
    the embedded backend, else from `MIPRO_API_KEY` or `SYNTH_API_KEY` where the task runs.
    `prompt` is the prompt the session began with, if it has one.
    """

    def rollout(
        self,
        example: Any = None,
        *,
        rollout_id: str | None = None,
        example_id: str | int | None = None,
        metric: Reward | AsyncReward | None = None,
        on_error: OnError = "no_reward",
        shareable: bool = False,
    ) -> RolloutBlock:
        """A `with` or `async with` block that is one rollout.

        In the body, call the model through the rollout (`rollout.openai()` is an OpenAI client,
        `rollout.complete(messages)` needs no extra package) and say what the answer is worth:
        call `rollout.reward(value)`, or set `rollout.answer` for `metric(example, answer)` to
        judge. The reward is reported once, when the block ends. Errors of the body and the metric
        leave the block; a reward given before is still reported, else `on_error` if it is a number.

        Args:
            example: The input of the rollout, passed to `metric`.
            rollout_id: The rollout's id; a new one by default. In a task, an example with an id
                makes retries of the task the same rollout.
            example_id: The example's id; by default the example's own, if it has one.
            metric: A reward function; in an `async with` block it may be a coroutine function.
            on_error: The reward to report for a body that raises, if it is a number.
            shareable: Whether the rollout's texts may be shown to other users as a worked example.

        Returns:
            The block. Entering it gives an `OpenRollout` or `AsyncOpenRollout`.

        Raises:
            InputInvalid: The metric is not a function, or `on_error` is neither a finite number
                nor one of its two words.

        Example:
            ```python
            with session.rollout(row) as rollout:
                answer = rollout.ask(row)
                rollout.reward(answer == row["label"])
            ```
        """
        return RolloutBlock(
            self,
            example,
            rollout_id=rollout_id,
            example_id=example_id,
            metric=metric,
            on_error=on_error,
            shareable=shareable,
        )

    @contextmanager
    def connected(self) -> Iterator[Self]:
        """A block in which all rollouts and tasks of this process share one open connection.

        Outside of it, each of them looks up the key and connects anew if no other is running.
        """
        with connection_to(self):
            yield self

    @asynccontextmanager
    async def aconnected(self) -> AsyncIterator[Self]:
        """A block in which everything on this event loop shares one connection."""
        async with async_connection_to(self):
            yield self
