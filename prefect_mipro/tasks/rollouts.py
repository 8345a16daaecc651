"""Rollouts as tasks: run the program, judge its answer, report the reward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.asyncio import concurrency as aconcurrency
from prefect.concurrency.sync import concurrency
from prefect.runtime import task_run

from prefect_mipro.models.judgements import judgement, within
from prefect_mipro.models.summaries import Evaluation, RolloutResult
from prefect_mipro.tasks.connections import (
    AsyncConnection,
    Connection,
    SessionHandle,
    async_connection_to,
    connection_to,
)
from prefect_mipro.tasks.course import Course
from prefect_mipro.tasks.fanout import gathered, threaded
from prefect_mipro.tasks.live import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.pace import Pace
from prefect_mipro.tasks.programs import (
    HOPELESS,
    AsyncProgram,
    Example,
    OnError,
    Program,
    Reward,
    RolloutJob,
)
from prefect_mipro.tasks.unapplied import WAY_OUT


def _rollout_name() -> str:
    return f"rollout {task_run.get_parameters().get('rollout_id') or task_run.get_id()}"


def _rollouts_name(parameters: dict[str, Any]) -> str:
    jobs: Sequence[RolloutJob] = parameters["jobs"]
    return f"{jobs[0].rollout_id} and on" if jobs else "no rollouts"


# As Any: Prefect's type for such a function is a class, of which it asks the signature only.
_ROLLOUTS_NAME: Any = _rollouts_name


@task(name="run-rollout", task_run_name=_rollout_name, cache_policy=NO_CACHE)
def run_rollout(
    example: Example,
    *,
    session: SessionHandle,
    program: Program,
    reward: Reward | None,
    rollout_id: str | None = None,
    example_id: str | None = None,
    on_error: OnError = "no_reward",
    stop: bool = False,
    shareable: bool = False,
) -> RolloutResult:
    """Run `program(rollout, example)`, judge it by `reward(example, answer)`, report the reward.

    Without `rollout_id` it is the task run's id, so that retries of the task are one rollout. With
    `None` as reward function the reward comes later, by `report_reward`. When program or reward
    function raise, `on_error` says whether the task raises, goes on without a reward, or reports
    this number. `stop` ends the session with this reward. `shareable` says that its texts may be
    shown to other users, as a worked example.
    """
    with connection_to(session) as connection:
        job = RolloutJob.of(
            example,
            rollout_id or _own_id(),
            example_id=example_id,
            stop=stop,
            shareable=shareable,
        )
        return _run(job, session, connection, program, reward, on_error)


@task(name="run-rollout", task_run_name=_rollout_name, cache_policy=NO_CACHE)
async def arun_rollout(
    example: Example,
    *,
    session: SessionHandle,
    program: AsyncProgram,
    reward: Reward | None,
    rollout_id: str | None = None,
    example_id: str | None = None,
    on_error: OnError = "no_reward",
    stop: bool = False,
    shareable: bool = False,
) -> RolloutResult:
    """The same for a program that is a coroutine function; the reward function may be one too."""
    async with async_connection_to(session) as connection:
        job = RolloutJob.of(
            example,
            rollout_id or _own_id(),
            example_id=example_id,
            stop=stop,
            shareable=shareable,
        )
        return await _arun(job, session, connection, program, reward, on_error)


@task(name="run-rollouts", task_run_name=_ROLLOUTS_NAME, cache_policy=NO_CACHE)
def run_rollouts(
    jobs: Sequence[RolloutJob],
    *,
    session: SessionHandle,
    program: Program,
    reward: Reward | None,
    on_error: OnError = "no_reward",
    max_workers: int = 8,
    rate_limit: float | None = None,
    concurrency_limit: str | None = None,
) -> list[RolloutResult]:
    """Several rollouts in one task, at most `max_workers` at a time.

    A task run costs Prefect's server about 30 ms of CPU: worth it for a rollout of seconds, too
    much for thousands of short ones.

    No more than `rate_limit` rollouts start in a second. The task holds as many slots of Prefect's
    global `concurrency_limit` as it runs rollouts at a time.
    """
    if not jobs:
        return []
    workers, pace = min(max_workers, len(jobs)), Pace(rate_limit)

    def paced(job: RolloutJob) -> RolloutResult:
        pace.turn()
        return _run(job, session, connection, program, reward, on_error)

    with (
        concurrency(concurrency_limit or [], occupy=workers),
        connection_to(session) as connection,
    ):
        results = threaded(paced, jobs, max_workers=workers)
        # The last one's turn is as long as the others: the next task may begin at once.
        pace.turn()
        return results


@task(name="run-rollouts", task_run_name=_ROLLOUTS_NAME, cache_policy=NO_CACHE)
async def arun_rollouts(
    jobs: Sequence[RolloutJob],
    *,
    session: SessionHandle,
    program: AsyncProgram,
    reward: Reward | None,
    on_error: OnError = "no_reward",
    max_workers: int = 8,
    rate_limit: float | None = None,
    concurrency_limit: str | None = None,
) -> list[RolloutResult]:
    """The same for a program that is a coroutine function, on one event loop."""
    if not jobs:
        return []
    workers, pace = min(max_workers, len(jobs)), Pace(rate_limit)

    async def paced(job: RolloutJob) -> RolloutResult:
        await pace.aturn()
        return await _arun(job, session, connection, program, reward, on_error)

    async with (
        aconcurrency(concurrency_limit or [], occupy=workers),
        async_connection_to(session) as connection,
    ):
        results = await gathered(paced, jobs, max_workers=workers)
        await pace.aturn()
        return results


@task(name="evaluate-candidate", task_run_name="evaluate {candidate_id}", cache_policy=NO_CACHE)
def evaluate_candidate(
    examples: Sequence[Example],
    *,
    session: SessionHandle,
    candidate_id: str,
    program: Program,
    reward: Reward,
    reward_range: tuple[float, float] = (0.0, 1.0),
    max_workers: int = 8,
    rate_limit: float | None = None,
    concurrency_limit: str | None = None,
) -> Evaluation:
    """Run the program with this candidate on examples that nothing is learned from.

    The calls carry the candidate's id, and the backend keeps nothing of them. A program that
    raises counts as the lowest reward. The limits are those of `run_rollouts`.
    """
    workers, pace = min(max_workers, len(examples)), Pace(rate_limit)
    with (
        concurrency(concurrency_limit or [], occupy=workers),
        connection_to(session) as connection,
    ):

        def scored(numbered: tuple[int, Example]) -> _Scored:
            pace.turn()
            number, example = numbered
            rollout = LiveRollout(
                session, connection, f"{candidate_id}-{number}", candidate_id=candidate_id
            )
            try:
                judged = judgement(reward(example, program(rollout, example)))
                score = within(judged.score, reward_range)
            except HOPELESS:
                raise
            except Exception as error:
                _log_failure(rollout.rollout_id, error)
                return _Scored(None, rollout.prompt_applied)
            return _Scored(score, rollout.prompt_applied)

        results = threaded(scored, list(enumerate(examples)), max_workers=workers)
    return _evaluation(candidate_id, results, reward_range)


@task(name="evaluate-candidate", task_run_name="evaluate {candidate_id}", cache_policy=NO_CACHE)
async def aevaluate_candidate(
    examples: Sequence[Example],
    *,
    session: SessionHandle,
    candidate_id: str,
    program: AsyncProgram,
    reward: Reward,
    reward_range: tuple[float, float] = (0.0, 1.0),
    max_workers: int = 8,
    rate_limit: float | None = None,
    concurrency_limit: str | None = None,
) -> Evaluation:
    """The same for a program that is a coroutine function."""
    workers, pace = min(max_workers, len(examples)), Pace(rate_limit)
    async with (
        aconcurrency(concurrency_limit or [], occupy=workers),
        async_connection_to(session) as connection,
    ):

        async def scored(numbered: tuple[int, Example]) -> _Scored:
            await pace.aturn()
            number, example = numbered
            rollout = AsyncLiveRollout(
                session, connection, f"{candidate_id}-{number}", candidate_id=candidate_id
            )
            try:
                answer = await program(rollout, example)
                judged = judgement(await _awaited(reward(example, answer)))
                score = within(judged.score, reward_range)
            except HOPELESS:
                raise
            except Exception as error:
                _log_failure(rollout.rollout_id, error)
                return _Scored(None, rollout.prompt_applied)
            return _Scored(score, rollout.prompt_applied)

        results = await gathered(scored, list(enumerate(examples)), max_workers=workers)
    return _evaluation(candidate_id, results, reward_range)


def _run(
    job: RolloutJob,
    session: SessionHandle,
    connection: Connection,
    program: Program,
    reward: Reward | None,
    on_error: OnError,
) -> RolloutResult:
    course = Course(job)
    rollout = LiveRollout(session, connection, job.rollout_id, example_id=job.example_id)
    course.live = rollout
    try:
        course.answer = program(rollout, job.example)
        if reward is not None:
            course.judged = judgement(reward(job.example, course.answer))
    except Exception as error:
        course.failed(error, on_error)
    course.send(connection, session, on_error)
    return course.result()


async def _arun(
    job: RolloutJob,
    session: SessionHandle,
    connection: AsyncConnection,
    program: AsyncProgram,
    reward: Reward | None,
    on_error: OnError,
) -> RolloutResult:
    course = Course(job)
    rollout = AsyncLiveRollout(session, connection, job.rollout_id, example_id=job.example_id)
    course.live = rollout
    try:
        course.answer = await program(rollout, job.example)
        if reward is not None:
            course.judged = judgement(await _awaited(reward(job.example, course.answer)))
    except Exception as error:
        course.failed(error, on_error)
    await course.asend(connection, session, on_error)
    return course.result()


class _Scored(NamedTuple):
    """A held-out example: its score, unless it raised, and whether the prompt was applied."""

    score: float | None
    prompt_applied: bool | None


def _evaluation(
    candidate_id: str, scored: Sequence[_Scored], reward_range: tuple[float, float]
) -> Evaluation:
    low, high = reward_range
    scaled = [0.0 if score is None else (score - low) / (high - low) for score, _ in scored]
    unapplied = sum(each.prompt_applied is False for each in scored)
    if unapplied:
        run_logger().warning(
            "%d of the %d held-out examples ran without the prompt of %s, so this evaluation says "
            "nothing about it. %s",
            *(unapplied, len(scored), candidate_id, WAY_OUT),
        )
    return Evaluation.of(
        candidate_id,
        scaled,
        failures=sum(each.score is None for each in scored),
        unapplied_examples=unapplied,
    )


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _own_id() -> str:
    return str(task_run.get_id() or uuid4())


def _log_failure(rollout_id: str, error: Exception) -> None:
    run_logger().warning("Rollout %s raised %s: %s", rollout_id, type(error).__name__, error)
