"""Rollouts as `with` blocks: the body is the program, and the end reports the reward."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from functools import partial
from inspect import isawaitable, iscoroutine
from numbers import Real
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

from prefect.runtime import task_run

from prefect_mipro.errors import InputInvalid, MiproError, RewardConflict, RewardInvalid
from prefect_mipro.models.judgements import RewardValue, judgement
from prefect_mipro.models.summaries import RolloutResult
from prefect_mipro.tasks.connections import (
    AsyncConnection,
    Connection,
    async_connection_to,
    connection_to,
)
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.live_rollouts import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.programs import (
    HOPELESS,
    Answer,
    Example,
    OnError,
    Reward,
    RolloutJob,
)
from prefect_mipro.tasks.rollout_progress import RolloutProgress, failure_reward
from prefect_mipro.tasks.steps import Steps, UserCall, arun, run

AsyncReward = Callable[[Example, Answer], Awaitable[RewardValue]]

_NO_ANSWER: Final = object()


class _Judged:
    """The answer and the reward, as the body of the block sets them."""

    answer: Answer = _NO_ANSWER
    """The answer for the metric to judge; the body sets it."""

    _progress: RolloutProgress
    _final: RolloutResult | None = None

    def reward(self, value: RewardValue, feedback: str | None = None) -> None:
        """Set the rollout's reward. It is reported once, when the block ends."""
        judged = judgement(value)
        if feedback is not None:
            judged = judged.model_copy(update={"feedback": feedback})
        if self._final is not None:
            raise InputInvalid(
                f"rollout {self._progress.job.rollout_id} has ended, so {judged.score:g} is not "
                "counted; reward it in its with block, or later by report_reward"
            )
        given = self._progress.judged
        if given is not None and given.score != judged.score:
            raise RewardConflict(
                f"rollout {self._progress.job.rollout_id} has the reward {given.score:g} already, "
                f"so {judged.score:g} is not counted; a rollout is rewarded once"
            )
        self._progress.judged = judged

    @property
    def result(self) -> RolloutResult:
        """The result so far; after the block, the final one."""
        if self._final is not None:
            return self._final
        self._progress.answer = None if self.answer is _NO_ANSWER else self.answer
        return self._progress.result()

    def _end(self) -> None:
        self._final = self.result


class OpenRollout(_Judged, LiveRollout):
    """The rollout of a `with session.rollout(...)` block."""

    def __init__(
        self, session: SessionAddress, connection: Connection, progress: RolloutProgress
    ) -> None:
        job = progress.job
        super().__init__(connection, session, job.rollout_id, job.example_id)
        self._progress = progress
        progress.live = self


class AsyncOpenRollout(_Judged, AsyncLiveRollout):
    """The rollout of an `async with session.rollout(...)` block."""

    def __init__(
        self, session: SessionAddress, connection: AsyncConnection, progress: RolloutProgress
    ) -> None:
        job = progress.job
        super().__init__(connection, session, job.rollout_id, job.example_id)
        self._progress = progress
        progress.live = self


class RolloutBlock:
    """The value of `session.rollout(...)`, for one `with` or `async with` block."""

    def __init__(
        self,
        session: SessionAddress,
        example: Example,
        *,
        rollout_id: str | None,
        example_id: str | int | None,
        metric: Reward | AsyncReward | None,
        on_error: OnError,
        shareable: bool,
    ) -> None:
        _check(metric, on_error)
        job = RolloutJob.of(example, rollout_id or "", example_id=example_id, shareable=shareable)
        self._session = session
        self._job = job if rollout_id else replace(job, rollout_id=_own_id(job.example_id))
        self._metric = metric
        self._on_error = on_error
        self._begun = False

    @property
    def rollout_id(self) -> str:
        """The rollout's id, for example for a later reward."""
        return self._job.rollout_id

    def __enter__(self) -> OpenRollout:
        progress = self._begin()
        with ExitStack() as opened:
            connection = opened.enter_context(connection_to(self._session))
            rollout = OpenRollout(self._session, connection, progress)
            opened.push(lambda _kind, error, _: run(self._finish(rollout, error), connection))
            self._opened = opened.pop_all()
        return rollout

    def __exit__(self, *exception: Any) -> bool | None:
        return self._opened.__exit__(*exception)

    async def __aenter__(self) -> AsyncOpenRollout:
        progress = self._begin()
        async with AsyncExitStack() as opened:
            connection = await opened.enter_async_context(async_connection_to(self._session))
            rollout = AsyncOpenRollout(self._session, connection, progress)

            async def finish(_kind: object, error: BaseException | None, _: object) -> None:
                await arun(self._finish(rollout, error), connection)

            opened.push_async_exit(finish)
            self._aopened = opened.pop_all()
        return rollout

    async def __aexit__(self, *exception: Any) -> bool | None:
        return await self._aopened.__aexit__(*exception)

    def _begin(self) -> RolloutProgress:
        if self._begun:
            raise InputInvalid(
                f"rollout {self.rollout_id} has begun already; call session.rollout() for another"
            )
        self._begun = True
        return RolloutProgress(self._job)

    def _finish(self, rollout: _Judged, error: BaseException | None) -> Steps[None]:
        """Judge the answer and report the reward. Raises errors of the metric, not the body's."""
        progress, failure = rollout._progress, error
        try:
            if error is None and self._metric is not None and progress.judged is None:
                progress.judged = judgement((yield UserCall(partial(self._judge, rollout))))
        except Exception as raised:
            failure = raised
        try:
            if failure is None:
                yield from progress.report(self._session, "raise")
            elif isinstance(failure, Exception):
                self._failed(progress, failure)
                yield from self._report_if_reachable(progress)
        finally:
            rollout._end()
        if failure is not None and failure is not error:
            raise failure

    def _judge(self, rollout: _Judged) -> Any:
        if rollout.answer is _NO_ANSWER:
            raise RewardInvalid(
                f"the metric has no answer of rollout {self.rollout_id} to judge; set "
                "rollout.answer in the with block, or call rollout.reward there"
            )
        assert self._metric is not None
        value = self._metric(self._job.example, rollout.answer)
        return value if isinstance(rollout, AsyncOpenRollout) else _at_once(value)

    def _failed(self, progress: RolloutProgress, error: Exception) -> None:
        progress.failure = error
        # An invalid reward says nothing about the prompt.
        hopeless = isinstance(error, (*HOPELESS, RewardInvalid))
        if progress.judged is None and not hopeless and not isinstance(self._on_error, str):
            progress.judged = failure_reward(error, self._on_error)

    def _report_if_reachable(self, progress: RolloutProgress) -> Steps[None]:
        try:
            yield from progress.report(self._session, "raise")
        except MiproError as error:
            # The error of the body is the one to raise.
            run_logger().warning(
                "The reward of rollout %s was not reported: %s", self.rollout_id, error
            )


def _at_once(value: Any) -> Any:
    if isawaitable(value):
        if iscoroutine(value):
            value.close()
        raise RewardInvalid(
            "the metric is a coroutine function; use it in an `async with` block, or give one that "
            "is not"
        )
    return value


def _check(metric: object, on_error: object) -> None:
    """Raise InputInvalid before the model is called for nothing."""
    if metric is not None and not callable(metric):
        raise InputInvalid(f"the metric is {metric!r:.80}; give a function of example and answer")
    finite = isinstance(on_error, Real) and math.isfinite(on_error)
    if not finite and on_error not in ("no_reward", "raise"):
        raise InputInvalid(
            f'on_error is {on_error!r:.80}; give "no_reward", or the reward of a rollout that '
            "fails as a finite number"
        )


def _own_id(example_id: str | None) -> str:
    """A new id. In a task run it follows from the example, so that a retry is the same rollout."""
    own = task_run.get_id()
    return str(uuid5(UUID(str(own)), example_id) if own and example_id else uuid4())
