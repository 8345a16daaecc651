"""The rollouts of one run: their order, their number at a time, and their artifacts."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from prefect import Task
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from prefect_mipro.artifacts.publishing import SessionArtifacts
from prefect_mipro.artifacts.reports import headline
from prefect_mipro.client import operations
from prefect_mipro.errors import ProgramFailed
from prefect_mipro.events import tell_changes
from prefect_mipro.flows.budget import Budget
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
from prefect_mipro.tasks.connections import Connection
from prefect_mipro.tasks.logs import quiet_rollouts, run_logger
from prefect_mipro.tasks.ownership import first_rollout
from prefect_mipro.tasks.pace import Pace
from prefect_mipro.tasks.programs import Example, OnError
from prefect_mipro.tasks.retries import over_a_restart
from prefect_mipro.tasks.steps import ask, run

SHORTEST_PAUSE_SECONDS = 1.0
PUBLICATIONS = 4
BROKEN_AFTER_ROLLOUTS = 8
# Prefect's runner kills a cancelled run after 30 seconds.
LONGEST_FAREWELL_SECONDS = 15.0


class Loop:
    """The rollouts that one run adds to a session."""

    def __init__(
        self,
        session: SessionHandle,
        *,
        connection: Connection,
        program: Callable[..., Any],
        reward: Callable[..., Any],
        on_error: OnError,
        budget: Budget,
    ) -> None:
        self.artifacts = SessionArtifacts(session.session_id)
        self.results: list[RolloutResult] = []
        self._session = session
        self._connection = connection
        self._program = program
        self._reward = reward
        self._on_error = on_error
        self._budget = budget
        self._pace = Pace(budget.rate_limit)
        self._asynchronous = is_coroutine_function(program)
        self._log = run_logger()
        self._first = connection.client.session_status(session.session_id)
        self._done: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
        self._running = 0
        self._shown_rollouts = 0
        self._shown_at = time.monotonic()

    def run(self, examples: Sequence[Example], *, seed: int, stop: bool) -> None:
        """Run the rollouts and fill `results` in the order they end, until the session ends.

        A retried run does what earlier attempts have left of the budget. With `stop`, the last
        reward, sent after all others, ends the session.
        """
        done_before = self._first.rollout_count - first_rollout(self._session, self._first)
        self._budget = replace(self._budget, rollouts=max(0, self._budget.rollouts - done_before))
        if not self._goes_on(self._first) or not self._budget.rollouts:
            return
        first = self._first.rollout_count
        last = first + self._budget.rollouts - 1
        numbered = islice(stream(examples, seed=seed, start=first), self._budget.rollouts)
        # From run and position, so that a retried task has the same rollout id. A later attempt of
        # the run has other ids, because it may repeat positions that the attempt before had begun.
        run_id = str(flow_run.get_id() or uuid4())
        attempt = f"{run_id}.{done_before}" if done_before else run_id
        jobs = (
            RolloutJob.of(
                example,
                f"{attempt}-{position}",
                stop=stop and position == last,
                # A data set is the developer's own, not a message of a stranger.
                shareable=True,
            )
            for position, example in numbered
        )
        if not stop:
            self._run(jobs)
            return
        self._run(islice(jobs, self._budget.rollouts - 1))
        if self._goes_on(self._status()):
            self._run(jobs)
            if not self._status().status.final:
                # The last rollout had no reward to end the session with.
                cancel_session(self._session)

    def evaluate(
        self,
        held_out: Sequence[Example],
        reward: Callable[..., Any],
        reward_range: tuple[float, float],
    ) -> tuple[Evaluation, ...]:
        """Evaluate the baseline, the champion and the leading candidate on the same examples."""
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
                _Sealed(held_out),
                session=_Sealed(self._session),
                candidate_id=candidate_id,
                program=self._program,
                reward=reward,
                reward_range=reward_range,
                max_workers=self._budget.max_workers,
                rate_limit=self._budget.rate_limit,
                concurrency_limit=self._budget.concurrency_limit,
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
        """Publish the final artifacts, and emit an event for a new champion."""
        status = self._status()
        self.artifacts.publish(status, evaluations=evaluations)
        self.artifacts.show_progress(status, done=len(self.results), planned=len(self.results) or 1)
        tell_changes(self._first, status)
        if self.artifacts.champion_url:
            self._log.info("The champion and its evidence: %s", self.artifacts.champion_url)
        return status

    def _status(self) -> SessionStatus:
        operation = operations.session_status(self._session.session_id)
        return run(over_a_restart(partial(ask, operation)), self._connection)

    def _run(self, jobs: Iterator[RolloutJob]) -> None:
        """Keep the budget's number of tasks running until the jobs or the session end."""
        # In a thread, because no rollout would start while Prefect and the backend answer.
        with (
            quiet_rollouts(flow_run.get_id()),
            ThreadPoolExecutor(1, thread_name_prefix="mipro-look") as aside,
        ):
            try:
                self._keep_running(jobs, aside)
            except BaseException:
                self._see_off()
                raise

    def _keep_running(self, jobs: Iterator[RolloutJob], aside: ThreadPoolExecutor) -> None:
        goes_on = True
        look: Future[bool] | None = None
        while True:
            pause_seconds = None
            while goes_on and self._running < self._budget.tasks:
                if pause_seconds := self._pace.away():
                    break
                batch = list(islice(jobs, self._budget.rollouts_per_task))
                if not batch:
                    goes_on = False
                    break
                self._pace.take()
                self._submit(batch).add_done_callback(self._done.put)
                self._running += 1
            if not self._running and not pause_seconds:
                break
            try:
                future = self._done.get(timeout=pause_seconds)
            except Empty:
                continue
            self._running -= 1
            ended = future.result()
            before = len(self.results)
            self.results += ended if isinstance(ended, list) else [ended]
            if any(r.outcome is RolloutOutcome.FAILED for r in self.results[before:]):
                # While the backend is away, further rollouts would fail as well.
                run(over_a_restart(partial(ask, operations.health())), self._connection)
            self._refuse_a_broken_program()
            if look and look.done():
                goes_on, look = goes_on and look.result(), None
            stepped = len(self.results) // self._budget.step > before // self._budget.step
            if stepped and look is None:
                look = aside.submit(copy_context().run, self._look)
        if look:
            look.result()

    def _see_off(self) -> None:
        """Let running tasks end, because their rewards would be lost with an embedded backend."""
        if self._running:
            self._log.info("Waiting for %d tasks under way", self._running)
        end = time.monotonic() + LONGEST_FAREWELL_SECONDS
        with suppress(Empty):
            while self._running:
                self._done.get(timeout=max(0.0, end - time.monotonic()))
                self._running -= 1

    def _look(self) -> bool:
        """Show the session's status. Returns whether the session goes on."""
        status = self._status()
        self._show(status)
        return self._goes_on(status)

    def _submit(self, batch: list[RolloutJob]) -> PrefectFuture[Any]:
        budget = self._budget
        common = {
            "session": _Sealed(self._session),
            "program": self._program,
            "reward": self._reward,
            "on_error": self._on_error,
        }
        if budget.rollouts_per_task > 1 or budget.concurrency_limit:
            several: Task[..., Any] = arun_rollouts if self._asynchronous else run_rollouts
            return several.submit(
                _Sealed(batch),
                max_workers=budget.workers_per_task,
                # Tasks do not know of each other, so each has its share.
                rate_limit=budget.rate_limit and budget.rate_limit / budget.tasks,
                concurrency_limit=budget.concurrency_limit,
                **common,
            )
        one: Task[..., Any] = arun_rollout if self._asynchronous else run_rollout
        (job,) = batch
        return one.submit(
            _Sealed(job.example),
            rollout_id=job.rollout_id,
            example_id=job.example_id,
            stop=job.stop,
            shareable=job.shareable,
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
            # A run must not fail for its artifacts.
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
    """Numbered examples without end, from `start`, each pass over them in another order.

    The example follows from number and seed alone, so that the next run of a session continues
    where the one before stopped.
    """
    position = start
    while True:
        turn, offset = divmod(position, len(examples))
        order = random.Random(f"{seed}/{turn}").sample(range(len(examples)), len(examples))
        for index in order[offset:]:
            yield position, examples[index]
            position += 1


def is_coroutine_function(program: Callable[..., Any]) -> bool:
    """Whether calling the function or object returns a coroutine."""
    return inspect.iscoroutinefunction(program) or inspect.iscoroutinefunction(
        getattr(program, "__call__", None)  # noqa: B004
    )


# As Any: mypy does not find the class's own type variable.
_Quote: Any = quote


class _Sealed(_Quote):  # type: ignore[misc]
    """An argument that Prefect does not search for futures, which would slow each submission.

    Prefect's own `quote` is a tuple that is nested once more when unpickled, so that tasks on Dask
    and Ray would get a tuple.
    """

    __slots__ = ()

    def __getnewargs__(self) -> tuple[Any]:
        (value,) = self
        return (value,)
