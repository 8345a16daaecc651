"""Rollouts as tasks: run the program, judge its answer, report the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from prefect_mipro.models.judgements import judgement, within
from prefect_mipro.models.summaries import Evaluation, RolloutResult
from prefect_mipro.tasks.live_rollouts import AsyncLiveRollout, LiveRollout
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
from prefect_mipro.tasks.requests import own_id
from prefect_mipro.tasks.rollout_progress import RolloutProgress
from prefect_mipro.tasks.rollout_warnings import WAY_OUT
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import (
    Connect,
    Occupy,
    StartRollout,
    Steps,
    UserCall,
    Wait,
    arun,
    concurrently,
    run,
)
from prefect_mipro.tasks.twins import twin_of

T = TypeVar("T")


def _rollout_name() -> str:
    return f"rollout {_rollout_id()}"


def _step_name() -> str:
    return f"step {_rollout_id()}"


def _rollout_id() -> object:
    return task_run.get_parameters().get("rollout_id") or task_run.get_id()


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
    """Run `program(rollout, example)`, judge its answer, and report the reward.

    Args:
        example: The input of the program.
        session: The session's handle.
        program: A function of a rollout and the example (for `arun_rollout` a coroutine function).
            It calls the model through the rollout.
        reward: A function of the example and the answer. With `None` the reward comes later, by
            `report_reward`.
        rollout_id: The rollout's id. By default the id of the task run, so that retries of the task
            are one rollout.
        example_id: The example's id; by default the example's own, if it has one.
        on_error: If program or reward function raise: `"raise"` to raise, `"no_reward"` to go on
            without a reward, or the reward to report.
        stop: Whether to end the session with this reward.
        shareable: Whether the rollout's texts may be shown to other users as a worked example.

    Returns:
        The rollout's answer, score and outcome.

    Raises:
        InputInvalid: The rollout id cannot be part of a URL.
        MiproError: The session, the key or the model is missing, so that every rollout would fail.

    Example:
        ```python
        from prefect_mipro.tasks import run_rollout

        result = run_rollout(
            row,
            session=session,
            program=lambda rollout, row: rollout.ask(row),
            reward=lambda row, answer: float(answer == row["label"]),
        )
        print(result.score)
        ```
    """
    job = RolloutJob.of(
        example, rollout_id or own_id(), example_id=example_id, stop=stop, shareable=shareable
    )
    return run(_one(job, session, program, reward, on_error))


@twin_of(run_rollout)
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
    job = RolloutJob.of(
        example, rollout_id or own_id(), example_id=example_id, stop=stop, shareable=shareable
    )
    return await arun(_one(job, session, program, reward, on_error))


@task(name="rollout-step", task_run_name=_step_name, cache_policy=NO_CACHE)
def rollout_step(
    example: Example,
    *,
    session: SessionHandle,
    program: Program | None = None,
    rollout_id: str | None = None,
    example_id: str | int | None = None,
) -> RolloutResult:
    """Run the language-model step of a flow: an answer now, its reward later.

    Args:
        example: The input of the step.
        session: The session's handle.
        program: A function of a rollout and the example (for `arollout_step` a coroutine function)
            that returns the answer. Without one, the session's own prompt is sent, each placeholder
            filled with the example's field of that name, and the answer is the model's text.
        rollout_id: The rollout's id. By default the id of the task run, so that retries of the task
            are one rollout.
        example_id: The example's id; by default the example's own, if it has one.

    Returns:
        The answer and the rollout's id, for `report_rewards`.

    Raises:
        InputInvalid: The example lacks a field of the prompt, or the rollout id cannot be part of a
            URL.
        Exception: Whatever the program raises.

    Example:
        ```python
        from prefect_mipro.tasks import rollout_step

        result = rollout_step({"id": "7", "request": "play jazz"}, session=session)
        print(result.answer, result.rollout_id)
        ```
    """
    job = RolloutJob.of(example, rollout_id or own_id(), example_id=example_id)
    return run(_one(job, session, program or _own_prompt, None, "raise"))


@twin_of(rollout_step)
async def arollout_step(
    example: Example,
    *,
    session: SessionHandle,
    program: AsyncProgram | None = None,
    rollout_id: str | None = None,
    example_id: str | int | None = None,
) -> RolloutResult:
    job = RolloutJob.of(example, rollout_id or own_id(), example_id=example_id)
    return await arun(_one(job, session, program or _own_prompt, None, "raise"))


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
    """Run several rollouts in one task.

    A task run costs Prefect's server about 30 ms of CPU: worth it for a rollout of seconds, too
    much for thousands of short ones.

    Args:
        jobs: The rollouts to run.
        session: The session's handle.
        program: A function of a rollout and an example, as in `run_rollout`.
        reward: A function of an example and an answer, as in `run_rollout`.
        on_error: What to do if program or reward function raise, as in `run_rollout`.
        max_workers: The number of rollouts that run at a time.
        rate_limit: The number of rollouts that may start per second.
        concurrency_limit: The name of one of Prefect's global concurrency limits. The task holds as
            many of its slots as it runs rollouts at a time.

    Returns:
        The results, in the order of the jobs.

    Raises:
        InputInvalid: A rollout id cannot be part of a URL.
        MiproError: The session, the key or the model is missing, so that every rollout would fail.

    Example:
        ```python
        from prefect_mipro.tasks import RolloutJob, run_rollouts

        jobs = [RolloutJob.of(row, f"2026-03-01-{row['id']}") for row in rows]
        results = run_rollouts(jobs, session=session, program=classify, reward=exact_match)
        ```
    """
    limits = Limits(max_workers, rate_limit, concurrency_limit)
    return run(_several(jobs, session, program, reward, on_error, limits))


@twin_of(run_rollouts)
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
    limits = Limits(max_workers, rate_limit, concurrency_limit)
    return await arun(_several(jobs, session, program, reward, on_error, limits))


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
    """Evaluate a candidate on held-out examples, from which nothing is learned.

    The calls carry the candidate's id, and the backend keeps nothing of them.

    Args:
        examples: The held-out examples.
        session: The session's handle.
        candidate_id: A candidate of this session.
        program: A function of a rollout and an example, as in `run_rollout`. If it raises, the
            example counts as the lowest reward.
        reward: A function of an example and an answer, as in `run_rollout`.
        reward_range: The lowest and the highest reward.
        max_workers: The number of examples that run at a time.
        rate_limit: The number of examples that may start per second.
        concurrency_limit: The name of one of Prefect's global concurrency limits, as in
            `run_rollouts`.

    Returns:
        The mean reward, scaled to 0 to 1, with its interval and the number of failures.

    Raises:
        MiproError: The candidate, the key or the model is missing, so that every example would
            fail.

    Example:
        ```python
        from prefect_mipro.tasks import evaluate_candidate

        evaluation = evaluate_candidate(
            held_out,
            session=session,
            candidate_id="cand_3f9a0c12",
            program=classify,
            reward=exact_match,
        )
        print(evaluation.mean_reward, evaluation.interval)
        ```
    """
    limits = Limits(max_workers, rate_limit, concurrency_limit)
    return run(_evaluated(examples, session, candidate_id, program, reward, reward_range, limits))


@twin_of(evaluate_candidate)
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
    limits = Limits(max_workers, rate_limit, concurrency_limit)
    return await arun(
        _evaluated(examples, session, candidate_id, program, reward, reward_range, limits)
    )


class Limits(NamedTuple):
    """The number of rollouts that run at a time, and that may start per second."""

    max_workers: int
    rate_limit: float | None
    concurrency_limit: str | None


class _Scored(NamedTuple):
    """A held-out example: its score, unless it raised, and whether the prompt was applied."""

    score: float | None
    prompt_applied: bool | None


AnyProgram = Callable[[Any, Example], Any]


def _one(
    job: RolloutJob,
    session: SessionHandle,
    program: AnyProgram,
    reward: Reward | None,
    on_error: OnError,
) -> Steps[RolloutResult]:
    yield Connect(session)
    return (yield from _rollout(job, session, program, reward, on_error))


def _own_prompt(rollout: LiveRollout | AsyncLiveRollout, example: Example) -> Any:
    return rollout.ask(example)


def _several(
    jobs: Sequence[RolloutJob],
    session: SessionHandle,
    program: AnyProgram,
    reward: Reward | None,
    on_error: OnError,
    limits: Limits,
) -> Steps[list[RolloutResult]]:
    if not jobs:
        return []
    pace = Pace(limits.rate_limit)
    bodies = [_rollout(job, session, program, reward, on_error) for job in jobs]
    results = yield from _limited(bodies, session, limits, pace)
    # Wait for the gap after the last rollout too: the next task may begin at once.
    yield Wait(pace.take())
    return results


def _evaluated(
    examples: Sequence[Example],
    session: SessionHandle,
    candidate_id: str,
    program: AnyProgram,
    reward: Reward,
    reward_range: tuple[float, float],
    limits: Limits,
) -> Steps[Evaluation]:
    bodies = [
        _scored(
            example,
            StartRollout(session, f"{candidate_id}-{number}", candidate_id=candidate_id),
            program,
            reward,
            reward_range,
        )
        for number, example in enumerate(examples)
    ]
    results = yield from _limited(bodies, session, limits, Pace(limits.rate_limit))
    return _evaluation(candidate_id, results, reward_range)


def _limited(
    bodies: Sequence[Steps[T]], session: SessionHandle, limits: Limits, pace: Pace
) -> Steps[list[T]]:
    workers = min(limits.max_workers, len(bodies))
    if limits.concurrency_limit:
        yield Occupy(limits.concurrency_limit, workers)
    yield Connect(session)
    paced = [_paced(body, pace) for body in bodies]
    return (yield from concurrently(paced, max_workers=workers))


def _paced(body: Steps[T], pace: Pace) -> Steps[T]:
    yield Wait(pace.take())
    return (yield from body)


def _rollout(
    job: RolloutJob,
    session: SessionHandle,
    program: AnyProgram,
    reward: Reward | None,
    on_error: OnError,
) -> Steps[RolloutResult]:
    progress = RolloutProgress(job)
    progress.live = yield StartRollout(session, job.rollout_id, example_id=job.example_id)
    try:
        progress.answer = yield UserCall(partial(program, progress.live, job.example))
        if reward is not None:
            value = yield UserCall(partial(reward, job.example, progress.answer))
            progress.judged = judgement(value)
    except Exception as error:
        progress.failed(error, on_error)
    yield from progress.report(session, on_error)
    return progress.result()


def _scored(
    example: Example,
    start: StartRollout,
    program: AnyProgram,
    reward: Reward,
    reward_range: tuple[float, float],
) -> Steps[_Scored]:
    rollout = yield start
    try:
        answer = yield UserCall(partial(program, rollout, example))
        judged = judgement((yield UserCall(partial(reward, example, answer))))
        score = within(judged.score, reward_range)
    except HOPELESS:
        raise
    except Exception as error:
        run_logger().warning(
            "Rollout %s raised %s: %s", rollout.rollout_id, type(error).__name__, error
        )
        return _Scored(None, rollout.prompt_applied)
    return _Scored(score, rollout.prompt_applied)


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
