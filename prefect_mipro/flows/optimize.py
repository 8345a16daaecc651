"""The optimization flow: config, examples, program and reward in, a better prompt out."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.transactions import transaction
from pydantic import Field

from prefect_mipro.blocks import MiproSessionConfig
from prefect_mipro.embedded import running_backend
from prefect_mipro.errors import InputInvalid
from prefect_mipro.flows.budget import Budget
from prefect_mipro.flows.loop import Loop
from prefect_mipro.flows.recording import loop_flow
from prefect_mipro.flows.sessions import some_backend
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.models.summaries import (
    Evaluation,
    OptimizationSummary,
    RolloutOutcome,
)
from prefect_mipro.tasks import create_session
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.opening import session_plan
from prefect_mipro.tasks.pace import slots_of

LARGEST_WORKERS = 256


@loop_flow(
    name="optimize-prompt",
    # The largest value of `max_workers`, to which the flow itself keeps.
    task_runner=ThreadPoolTaskRunner(max_workers=LARGEST_WORKERS),
)
def optimize_prompt(
    config: MiproSessionConfig | dict[str, Any] | str | Path,
    examples: Sequence[Any],
    program: Callable[..., Any],
    reward: Callable[..., Any],
    *,
    rollouts: Annotated[int, Field(ge=0)] = 200,
    held_out: Sequence[Any] = (),
    held_out_reward: Callable[..., Any] | None = None,
    session_id: str | None = None,
    credentials: str | None = None,
    backend_url: str | None = None,
    max_workers: Annotated[int, Field(ge=1, le=LARGEST_WORKERS)] = 8,
    rollouts_per_task: Annotated[int, Field(ge=1)] = 1,
    rate_limit: Annotated[float, Field(gt=0)] | None = None,
    concurrency_limit: str | None = None,
    on_error: Literal["raise", "no_reward"] | float = "no_reward",
    seed: int = 0,
    stop: bool = False,
) -> OptimizationSummary:
    """Optimize the prompt of a program on examples.

    Each rollout calls `program(rollout, example)` and is worth `reward(example, answer)`; see
    `run_rollout`. A program that is a coroutine function runs on event loops. Any task runner
    works: `optimize_prompt.with_options(task_runner=...)`.

    Args:
        config: The name of a saved `MiproSessionConfig` block, the block itself, a config as a
            dict, or the path of a TOML file.
        examples: The inputs of the program, used pass after pass, each pass in another order.
        program: The program whose prompt is optimized.
        reward: The reward function.
        rollouts: The number of rollouts this run adds to the session.
        held_out: Examples on which baseline and champion are compared at the end. Nothing is
            learned from them.
        held_out_reward: The reward function for `held_out`; by default `reward`.
        session_id: The session to create or to continue. By default the block's id, else the
            config's `system_id`, else a new id.
        credentials: The name of a saved `MiproCredentials` block; by default the one in the config
            block. Without any, the backend is `backend_url`, else `MIPRO_BACKEND_URL`, else an
            embedded backend for this run.
        backend_url: The URL of a backend; its key, if it needs one, is in `MIPRO_API_KEY`.
        max_workers: The number of rollouts that run at a time.
        rollouts_per_task: The number of rollouts in one Prefect task.
        rate_limit: The number of rollouts that may start per second.
        concurrency_limit: The name of one of Prefect's global concurrency limits, which all flow
            runs share. Each running rollout holds a slot until its task ends.
        on_error: If a rollout raises: `"raise"` to raise, `"no_reward"` to go on without a reward,
            or the reward to report.
        seed: The seed of the order of the examples.
        stop: Whether to end the session with this run.

    Returns:
        The session's state and champion, the number of rollouts by outcome, the comparison on
        `held_out`, and the keys of the artifacts.

    Raises:
        ConfigInvalid: The config cannot be used.
        ConfigNotFound: There is no block or file of that name.
        InputInvalid: There are no examples, or Prefect has no such concurrency limit.
        ProgramFailed: Each of the first rollouts failed.

    Example:
        ```python
        from prefect_mipro.flows import optimize_prompt

        summary = optimize_prompt(
            "support-bot",
            rows,
            lambda rollout, row: rollout.ask(row),
            lambda row, answer: float(answer == row["label"]),
            rollouts=200,
        )
        print(summary.champion_instruction)
        ```
    """
    started = time.monotonic()
    if rollouts and not examples:
        raise InputInvalid("there are no examples to run rollouts on; give at least one")
    plan = session_plan(config, session_id=session_id, credentials=credentials)
    budget = Budget(rollouts, max_workers, rollouts_per_task, rate_limit, concurrency_limit)
    if concurrency_limit:
        budget = budget.within(slots_of(concurrency_limit))
    with ExitStack() as opened:
        backend = some_backend(backend_url=backend_url, credentials=plan.credentials)
        url = opened.enter_context(backend)
        _refuse_tasks_without_a_key(url)
        with transaction():
            session = create_session(plan.config, **plan.arguments(url))
            connection = opened.enter_context(connection_to(session))
            loop = Loop(
                session,
                connection=connection,
                program=program,
                reward=reward,
                on_error=on_error,
                budget=budget,
            )
        loop.run(examples, seed=seed, stop=stop)
        evaluations = loop.evaluate(
            held_out, held_out_reward or reward, plan.settings.mipro.reward_range
        )
        status = loop.finish(evaluations)
    return _summary(loop, status, evaluations, seconds=time.monotonic() - started)


def _refuse_tasks_without_a_key(backend_url: str | None) -> None:
    """Raise InputInvalid if tasks run in processes that cannot know the embedded backend's key."""
    run = FlowRunContext.get()
    elsewhere = run and not isinstance(run.task_runner, ThreadPoolTaskRunner)
    embedded = backend_url and running_backend(backend_url)
    if elsewhere and embedded and not os.environ.get("MIPRO_API_KEY"):
        raise InputInvalid(
            "the tasks run in other processes, which do not know the key that the embedded backend "
            "made up; set MIPRO_API_KEY to any text before the run, or name a running backend"
        )


def _summary(
    loop: Loop, status: SessionStatus, evaluations: tuple[Evaluation, ...], *, seconds: float
) -> OptimizationSummary:
    champion = status.candidates[status.champion_candidate_id]
    scores = [result.score for result in loop.results if result.score is not None]
    outcomes = [result.outcome for result in loop.results]
    return OptimizationSummary(
        session_id=status.session_id,
        state=status.status,
        rollouts=len(outcomes),
        rewarded=outcomes.count(RolloutOutcome.REWARDED),
        failed=outcomes.count(RolloutOutcome.FAILED),
        unapplied_rollouts=sum(result.prompt_applied is False for result in loop.results),
        mean_score=sum(scores) / len(scores) if scores else None,
        candidates=len(status.candidates),
        baseline_candidate_id=status.baseline_candidate_id,
        best_candidate_id=status.best_candidate_id,
        champion_candidate_id=status.champion_candidate_id,
        champion_instruction=champion.instruction,
        champion_demonstrations=tuple(
            Demonstration.model_validate(turn) for turn in champion.demonstrations
        ),
        champion_mean_reward=champion.mean,
        evaluations=evaluations,
        artifact_keys=loop.artifacts.keys,
        seconds=seconds,
    )
