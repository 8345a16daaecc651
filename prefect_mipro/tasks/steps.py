"""The language-model step of a data flow: an answer now, its reward later."""

from __future__ import annotations

from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from prefect_mipro.models.summaries import RolloutResult
from prefect_mipro.tasks.connections import SessionHandle, async_connection_to, connection_to
from prefect_mipro.tasks.course import Course
from prefect_mipro.tasks.live import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.programs import AsyncProgram, Example, Program, RolloutJob


def _step_name() -> str:
    return f"step {task_run.get_parameters().get('rollout_id') or task_run.get_id()}"


@task(name="rollout-step", task_run_name=_step_name, cache_policy=NO_CACHE)
def rollout_step(
    example: Example,
    *,
    session: SessionHandle,
    program: Program | None = None,
    rollout_id: str | None = None,
    example_id: str | int | None = None,
) -> RolloutResult:
    """Run `program(rollout, example)`; its reward comes later, by `report_rewards`.

    Without a program the session's own prompt is sent, each placeholder filled with the example's
    field of that name, and the answer is the model's text. What the program raises, the task
    raises. Without `rollout_id` it is the task run's id; retries of the task are the same rollout.
    """
    job = RolloutJob.of(example, rollout_id or _own_id(), example_id=example_id)
    course = Course(job)
    with connection_to(session) as connection:
        rollout = LiveRollout(session, connection, job.rollout_id, example_id=job.example_id)
        course.live = rollout
        course.answer = program(rollout, example) if program else rollout.ask(example)
        course.send(connection, session, "raise")
    return course.result()


@task(name="rollout-step", task_run_name=_step_name, cache_policy=NO_CACHE)
async def arollout_step(
    example: Example,
    *,
    session: SessionHandle,
    program: AsyncProgram | None = None,
    rollout_id: str | None = None,
    example_id: str | int | None = None,
) -> RolloutResult:
    """Run the program, which is a coroutine function; see `rollout_step`."""
    job = RolloutJob.of(example, rollout_id or _own_id(), example_id=example_id)
    course = Course(job)
    async with async_connection_to(session) as connection:
        rollout = AsyncLiveRollout(session, connection, job.rollout_id, example_id=job.example_id)
        course.live = rollout
        course.answer = await (program(rollout, example) if program else rollout.ask(example))
        await course.asend(connection, session, "raise")
    return course.result()


def _own_id() -> str:
    return str(task_run.get_id() or uuid4())
