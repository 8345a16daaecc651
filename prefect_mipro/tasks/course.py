"""What becomes of a rollout: its answer, what that is worth, and whether the reward counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from prefect.context import FlowRunContext, TaskRunContext

from prefect_mipro.errors import InputInvalid, RewardConflict, SessionEnded
from prefect_mipro.models.judgements import Judgement
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.summaries import RolloutOutcome, RolloutResult
from prefect_mipro.tasks.connections import AsyncConnection, Connection, SessionHandle
from prefect_mipro.tasks.live import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.notices import Notice, due
from prefect_mipro.tasks.programs import HOPELESS, Answer, OnError, RolloutJob
from prefect_mipro.tasks.repeats import aover_a_restart, over_a_restart
from prefect_mipro.tasks.requests import reward_request
from prefect_mipro.tasks.unapplied import atell_unapplied, tell_unapplied

OWN_IDS = (
    "A rollout is rewarded once: give each run of your program a rollout id of its own, for "
    "example one that ends in the date"
)


@dataclass
class Course:
    """What has happened to a rollout so far."""

    job: RolloutJob
    started: float = field(default_factory=time.perf_counter)
    answer: Answer = None
    judged: Judgement | None = None
    receipt: RewardReceipt | None = None
    refusal: RewardConflict | SessionEnded | None = None
    failure: Exception | None = None
    live: LiveRollout | AsyncLiveRollout | None = None

    def failed(self, error: Exception, on_error: OnError) -> None:
        """Keep the error, and what stands for a reward; or raise it."""
        if on_error == "raise" or isinstance(error, HOPELESS):
            raise error
        run_logger().warning(
            "Rollout %s raised %s: %s", self.job.rollout_id, type(error).__name__, error
        )
        self.failure = error
        if on_error != "no_reward":
            self.judged = failure_reward(error, on_error)

    def send(self, connection: Connection, session: SessionHandle, on_error: OnError) -> None:
        """Report the reward, if there is one, and log why the rollout teaches nothing, if so."""
        while self._is_to_be_sent and self.judged:
            request = self._reward(session, self.judged)
            report = partial(connection.client.reward, session.session_id, request)
            try:
                self.receipt = over_a_restart(report)
            except InputInvalid as error:
                self._not_taken(error, on_error)
            except (RewardConflict, SessionEnded) as error:
                self.refusal = error
        self._tell_uncounted(session)
        if self._prompt_applied is False:
            tell_unapplied(connection, session)

    async def asend(
        self, connection: AsyncConnection, session: SessionHandle, on_error: OnError
    ) -> None:
        """Report the reward, if there is one, and log why the rollout teaches nothing, if so."""
        while self._is_to_be_sent and self.judged:
            request = self._reward(session, self.judged)
            report = partial(connection.client.reward, session.session_id, request)
            try:
                self.receipt = await aover_a_restart(report)
            except InputInvalid as error:
                self._not_taken(error, on_error)
            except (RewardConflict, SessionEnded) as error:
                self.refusal = error
        self._tell_uncounted(session)
        if self._prompt_applied is False:
            await atell_unapplied(connection, session)

    def result(self) -> RolloutResult:
        """How it ended."""
        failure = self.failure
        return RolloutResult(
            rollout_id=self.job.rollout_id,
            outcome=self._outcome(),
            example_id=self.job.example_id,
            candidate_id=self.receipt.candidate_id if self.receipt else None,
            answer=self.answer,
            score=self.judged.score if self.judged else None,
            error=f"{type(failure).__name__}: {failure}"[:500] if failure else "",
            prompt_applied=self._prompt_applied,
            seconds=time.perf_counter() - self.started,
        )

    @property
    def _is_to_be_sent(self) -> bool:
        return self.receipt is None and self.refusal is None

    def _not_taken(self, error: InputInvalid, on_error: OnError) -> None:
        """Fail the rollout for its reward; for one that failed before, the reward is `on_error`."""
        self.judged = None
        self.failed(error, on_error if self.failure is None else "no_reward")

    def _reward(self, session: SessionHandle, judged: Judgement) -> RewardRequest:
        stop = True if self.job.stop else None
        job = self.job
        return reward_request(
            session, judged, job.rollout_id, job.example_id, stop, shareable=job.shareable
        )

    def _tell_uncounted(self, session: SessionHandle) -> None:
        """Log a warning, when it is due, of a reward that did not count."""
        rollout_id = self.job.rollout_id
        if isinstance(self.refusal, SessionEnded):
            reason = self.refusal.message
        elif self.refusal:
            reason = f"{self.refusal.message}. {OWN_IDS}"
        elif self.receipt and self.receipt.duplicate and not is_retry():
            reason = f"rollout {rollout_id!r} had the same reward before. {OWN_IDS}"
        else:
            return
        if number := due(session.session_id, Notice.UNCOUNTED_REWARD):
            run_logger().warning(
                "Rewards of session %s did not count (%d so far): %s",
                *(session.session_id, number, reason),
            )

    @property
    def _prompt_applied(self) -> bool | None:
        """What the backend knows goes before what the program's answers told."""
        known = self.receipt.prompt_applied if self.receipt else None
        return self.live.prompt_applied if known is None and self.live else known

    def _outcome(self) -> RolloutOutcome:
        if self.failure:
            return RolloutOutcome.FAILED
        if isinstance(self.refusal, SessionEnded):
            return RolloutOutcome.TOO_LATE
        if self.refusal or (self.receipt and self.receipt.duplicate):
            return RolloutOutcome.REPEATED
        return RolloutOutcome.REWARDED if self.receipt else RolloutOutcome.UNREWARDED


def is_retry() -> bool:
    """Whether Prefect runs this task or flow again: then repeats are to be expected."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    runs = (task.task_run if task else None, flow.flow_run if flow else None)
    return any(run.run_count > 1 for run in runs if run is not None)


def failure_reward(error: Exception, score: float) -> Judgement:
    """What stands for the reward of a program that raised."""
    return Judgement(score=score, feedback=f"the program raised {type(error).__name__}")
