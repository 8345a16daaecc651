"""The progress of a rollout: its answer, its reward, and whether the reward counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from prefect.context import FlowRunContext, TaskRunContext

from prefect_mipro.client import operations
from prefect_mipro.errors import InputInvalid, RewardConflict, SessionEnded
from prefect_mipro.models.judgements import Judgement
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.summaries import RolloutOutcome, RolloutResult
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.live_rollouts import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.programs import HOPELESS, Answer, OnError, RolloutJob
from prefect_mipro.tasks.requests import reward_request
from prefect_mipro.tasks.retries import over_a_restart
from prefect_mipro.tasks.rollout_warnings import OWN_IDS, warn_unapplied, warn_uncounted
from prefect_mipro.tasks.steps import Steps, ask


@dataclass
class RolloutProgress:
    """A rollout under way: its answer, its reward, and the backend's receipt for it."""

    job: RolloutJob
    started: float = field(default_factory=time.perf_counter)
    answer: Answer = None
    judged: Judgement | None = None
    receipt: RewardReceipt | None = None
    refusal: RewardConflict | SessionEnded | None = None
    failure: Exception | None = None
    live: LiveRollout | AsyncLiveRollout | None = None

    def failed(self, error: Exception, on_error: OnError) -> None:
        """Keep the error, and the reward that `on_error` gives; or raise the error."""
        if on_error == "raise" or isinstance(error, HOPELESS):
            raise error
        run_logger().warning(
            "Rollout %s raised %s: %s", self.job.rollout_id, type(error).__name__, error
        )
        self.failure = error
        if on_error != "no_reward":
            self.judged = failure_reward(error, on_error)

    def report(self, session: SessionAddress, on_error: OnError) -> Steps[None]:
        """Report the reward, if there is one, and warn if nothing is learned from the rollout."""
        while self.judged and self.receipt is None and self.refusal is None:
            request = self._reward(session, self.judged)
            try:
                sent = partial(ask, operations.reward(session.session_id, request))
                self.receipt = yield from over_a_restart(sent)
            except InputInvalid as error:
                # The reward fails the rollout; if it had failed before, the reward was `on_error`.
                self.judged = None
                self.failed(error, on_error if self.failure is None else "no_reward")
            except (RewardConflict, SessionEnded) as error:
                self.refusal = error
        if reason := self._uncounted_reason():
            warn_uncounted(session, reason)
        if self._prompt_applied is False:
            yield from warn_unapplied(session)

    def result(self) -> RolloutResult:
        """The rollout's result."""
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

    def _reward(self, session: SessionAddress, judged: Judgement) -> RewardRequest:
        stop = True if self.job.stop else None
        job = self.job
        return reward_request(
            session, judged, job.rollout_id, job.example_id, stop, shareable=job.shareable
        )

    def _uncounted_reason(self) -> str:
        """Why the reward did not count; empty if it did."""
        if isinstance(self.refusal, SessionEnded):
            return self.refusal.message
        if self.refusal:
            return f"{self.refusal.message}. {OWN_IDS}"
        if self.receipt and self.receipt.duplicate and not is_retry():
            return f"rollout {self.job.rollout_id!r} had the same reward before. {OWN_IDS}"
        return ""

    @property
    def _prompt_applied(self) -> bool | None:
        """Whether a call had the candidate's prompt, as the backend says, else the answers."""
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
    """Whether this task or flow run is a retry, in which repeats are expected."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    runs = (task.task_run if task else None, flow.flow_run if flow else None)
    return any(run.run_count > 1 for run in runs if run is not None)


def failure_reward(error: Exception, score: float) -> Judgement:
    """The reward of a program that raised."""
    return Judgement(score=score, feedback=f"the program raised {type(error).__name__}")
