"""The rollouts of one run: which example comes when, how many at a time, and what is shown."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from prefect import Task
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from prefect_mipro.artifacts.publishing import SessionArtifacts
from prefect_mipro.artifacts.reports import headline
from prefect_mipro.errors import InputInvalid, ProgramFailed
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.models.summaries import Evaluation, RolloutOutcome, RolloutResult
from prefect_mipro.tasks import (
    RolloutJob,
    SessionHandle,
    aevaluate_candidate,
    arun_rollout,
    arun_rollouts,
    cancel_session,
    evaluate_candidate,
    run_rollout,
    run_rollouts,
)
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.programs import Example, OnError

STEPS = 20
SHORTEST_PAUSE_SECONDS = 1.0
PUBLICATIONS = 4
BROKEN_AFTER_ROLLOUTS = 8


@dataclass(frozen=True)
class Budget:
    """How much this run does, and how much of it at a time."""

    rollouts: int
    max_workers: int
    rollouts_per_task: int = 1

    @property
    def tasks(self) -> int:
        """How many Prefect tasks run at a time."""
        return math.ceil(self.max_workers / self.rollouts_per_task)

    @property
    def workers_per_task(self) -> int:
        """How many rollouts a task runs at a time; together at most `max_workers`."""
        return max(1, self.max_workers // self.tasks)

    @property
    def step(self) -> int:
        """After how many rollouts the loop looks at the session's status, and shows it."""
        return max(1, math.ceil(self.rollouts / STEPS))


class Loop:
    """One run's rollouts for a session."""

    def __init__(
        self,
        session: SessionHandle,
        *,
        status: Callable[[], SessionStatus],
        program: Callable[..., Any],
        reward: Callable[..., Any],
        on_error: OnError,
        budget: Budget,
    ) -> None:
        self.artifacts = SessionArtifacts(session.session_id)
        self.results: list[RolloutResult] = []
        self._session = session
        self._status = status
        self._program = program
        self._reward = reward
        self._on_error = on_error
        self._budget = budget
        self._asynchronous = is_coroutine_function(program)
        self._log = run_logger()
        self._first = status()
        self._shown_rollouts = 0
        self._shown_at = time.monotonic()

    def run(self, examples: Sequence[Example], *, seed: int, stop: bool) -> None:
        """Fill `results`, in the order in which rollouts end; fewer when the session ends before.

        `stop` sends the word to end the session with the last reward, when all others have come.
        """
        if not self._goes_on(self._first) or not self._budget.rollouts:
            return
        if not examples:
            raise InputInvalid("there are no examples to run rollouts on; give at least one")
        first = self._first.rollout_count
        last = first + self._budget.rollouts - 1
        numbered = islice(stream(examples, seed=seed, start=first), self._budget.rollouts)
        run_id = str(flow_run.get_id() or uuid4())
        # From run and position: a task that Prefect repeats has the same rollout id again.
        jobs = (
            RolloutJob.of(example, f"{run_id}-{position}", stop=stop and position == last)
            for position, example in numbered
        )
        if not stop:
            self._run(jobs)
            return
        self._run(islice(jobs, self._budget.rollouts - 1))
        if self._goes_on(self._status()):
            self._run(jobs)
            if not self._status().status.final:
                # The last rollout got no reward that could carry the word.
                cancel_session(self._session)

    def evaluate(
        self,
        held_out: Sequence[Example],
        reward: Callable[..., Any],
        reward_range: tuple[float, float],
    ) -> tuple[Evaluation, ...]:
        """The baseline, the champion and the candidate in the lead on the same examples."""
        if not held_out:
            return ()
        before = self._status()
        wanted = (
            before.baseline_candidate_id,
            before.champion_candidate_id,
            before.best_candidate_id,
        )
        evaluate: Task[..., Any] = aevaluate_candidate if self._asynchronous else evaluate_candidate
        evaluations = []
        for candidate_id in dict.fromkeys(wanted):
            future = evaluate.submit(
                quote(held_out),
                session=self._session,
                candidate_id=candidate_id,
                program=self._program,
                reward=reward,
                reward_range=reward_range,
                max_workers=self._budget.max_workers,
            )
            evaluation: Evaluation = future.result()
            low, high = evaluation.interval
            self._log.info(
                "Held out: %s at %.3f (%.3f to %.3f, %d examples)",
                *(candidate_id, evaluation.mean_reward, low, high, evaluation.examples),
            )
            evaluations.append(evaluation)
        if self._status().rollout_count > before.rollout_count:
            self._log.warning(
                "The session counted rollouts during the evaluation. Unless another run uses it, "
                "the program does not send rollout.headers, and its evaluation means nothing"
            )
        return tuple(evaluations)

    def finish(self, evaluations: Sequence[Evaluation]) -> SessionStatus:
        """Publish the end, and tell Prefect's automations of a new champion."""
        status = self._status()
        self.artifacts.publish(status, evaluations=evaluations)
        self.artifacts.show_progress(status, done=len(self.results), planned=len(self.results) or 1)
        if status.champion_candidate_id != self._first.champion_candidate_id:
            emit_event(
                "mipro.champion.changed",
                resource={"prefect.resource.id": f"mipro.session.{status.session_id}"},
                payload={"champion_candidate_id": status.champion_candidate_id},
            )
        return status

    def _run(self, jobs: Iterator[RolloutJob]) -> None:
        """Keep the budget's number of tasks running until the jobs or the session end."""
        done: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
        running, goes_on = 0, True
        while True:
            while goes_on and running < self._budget.tasks:
                batch = list(islice(jobs, self._budget.rollouts_per_task))
                if not batch:
                    break
                self._submit(batch).add_done_callback(done.put)
                running += 1
            if not running:
                return
            ended = done.get().result()
            running -= 1
            before = len(self.results)
            self.results += ended if isinstance(ended, list) else [ended]
            self._refuse_a_broken_program()
            if len(self.results) // self._budget.step > before // self._budget.step:
                status = self._status()
                self._show(status)
                goes_on = goes_on and self._goes_on(status)

    def _submit(self, batch: list[RolloutJob]) -> PrefectFuture[Any]:
        common = {
            "session": self._session,
            "program": self._program,
            "reward": self._reward,
            "on_error": self._on_error,
        }
        if self._budget.rollouts_per_task > 1:
            several: Task[..., Any] = arun_rollouts if self._asynchronous else run_rollouts
            return several.submit(quote(batch), max_workers=self._budget.workers_per_task, **common)
        one: Task[..., Any] = arun_rollout if self._asynchronous else run_rollout
        (job,) = batch
        return one.submit(
            quote(job.example),
            rollout_id=job.rollout_id,
            example_id=job.example_id,
            stop=job.stop,
            **common,
        )

    def _show(self, status: SessionStatus) -> None:
        done, planned = len(self.results), self._budget.rollouts
        if done < planned and time.monotonic() - self._shown_at < SHORTEST_PAUSE_SECONDS:
            return
        self._log.info("%d of %d rollouts. %s", done, planned, headline(status))
        quarters = PUBLICATIONS * done // planned, PUBLICATIONS * self._shown_rollouts // planned
        try:
            self.artifacts.show_progress(status, done=done, planned=planned)
            if done < planned and quarters[0] > quarters[1]:
                self.artifacts.publish(status)
        except PrefectException as error:
            # Pictures of the run are not worth the run.
            self._log.warning("Could not update the artifacts: %s", error)
        self._shown_rollouts, self._shown_at = done, time.monotonic()

    def _goes_on(self, status: SessionStatus) -> bool:
        if status.status.final:
            self._log.info(
                "Session %s has %s (%s): no more rollouts",
                *(status.session_id, status.status, status.stop_reason or "no reason given"),
            )
        return not status.status.final

    def _refuse_a_broken_program(self) -> None:
        enough = min(
            self._budget.rollouts, max(BROKEN_AFTER_ROLLOUTS, 2 * self._budget.max_workers)
        )
        if len(self.results) >= enough and all(
            result.outcome is RolloutOutcome.FAILED for result in self.results
        ):
            raise ProgramFailed(
                f"each of the first {len(self.results)} rollouts failed, the last one with "
                f"{self.results[-1].error}"
            )


def stream(
    examples: Sequence[Example], *, seed: int, start: int = 0
) -> Iterator[tuple[int, Example]]:
    """Numbered examples without end, from `start`: each pass over them in another order.

    Number and seed alone decide on the example, so that the next run of a session goes on where
    the one before it stopped.
    """
    position = start
    while True:
        turn, offset = divmod(position, len(examples))
        order = random.Random(f"{seed}/{turn}").sample(range(len(examples)), len(examples))
        for index in order[offset:]:
            yield position, examples[index]
            position += 1


def is_coroutine_function(program: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine; also for objects that can be called."""
    return inspect.iscoroutinefunction(program) or inspect.iscoroutinefunction(
        getattr(program, "__call__", None)  # noqa: B004
    )
