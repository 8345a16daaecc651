"""What the services tell of their work: counted always, traced where spans are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect_mipro.models.chat import Usage
from prefect_mipro.models.levers import LeverVersion
from prefect_mipro.models.rollouts import RewardReceipt
from prefect_mipro.server.telemetry.calls import MeteredCall, RawHeaders
from prefect_mipro.server.telemetry.metrics import Meters, RewardOutcome, RoundOutcome
from prefect_mipro.server.telemetry.tracing import Tell, Tracing


class Telemetry:
    """The meters and the spans of one app."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.meters = Meters()
        self.tracing = tracing or Tracing()

    def call(self, headers: RawHeaders) -> MeteredCall:
        """A proxied call that has those headers."""
        return self.tracing.call(self.meters.calls, headers)

    @contextmanager
    def reward(self, session_id: str, rollout_id: str | None) -> Iterator[WatchedReward]:
        """A reward that has come in."""
        with self.tracing.span("reward", session_id=session_id, rollout_id=rollout_id) as tell:
            watched = WatchedReward(tell)
            try:
                yield watched
            except Exception as error:
                watched.outcome = RewardOutcome.of_error(error)
                raise
            finally:
                self.meters.rewards.add(watched.outcome)
                tell(outcome=watched.outcome)

    @contextmanager
    def proposal_round(self, session_id: str) -> Iterator[WatchedRound]:
        """A proposal round that is due."""
        with self.tracing.span("proposal_round", session_id=session_id) as tell:
            watched = WatchedRound(tell)
            try:
                yield watched
            finally:
                self.meters.proposal_rounds.add(watched.outcome)
                self.meters.proposer_tokens.add("prompt", amount=watched.usage.prompt_tokens)
                self.meters.proposer_tokens.add(
                    "completion", amount=watched.usage.completion_tokens
                )
                tell(outcome=watched.outcome)

    def made(self, versions: Sequence[LeverVersion]) -> None:
        """Lever versions that are stored now."""
        for version in versions:
            self.meters.lever_versions.add(version.lever)


class WatchedReward:
    """A reward on its way. It has failed unless it says more."""

    def __init__(self, tell: Tell) -> None:
        self.outcome = RewardOutcome.FAILED
        self._tell = tell

    def taken(self, receipt: RewardReceipt) -> None:
        """What was counted, and for whom."""
        self._tell(candidate_id=receipt.candidate_id, rollout_id=receipt.rollout_id)
        if receipt.duplicate:
            self.outcome = RewardOutcome.DUPLICATE
        else:
            attached = receipt.attached
            self.outcome = RewardOutcome.ATTACHED if attached else RewardOutcome.WAITING


class WatchedRound:
    """A proposal round under way. It has failed unless it says more."""

    def __init__(self, tell: Tell) -> None:
        self.outcome = RoundOutcome.FAILED
        self.usage = Usage()
        self._tell = tell

    def finished(self, *, instructions: int, model_failed: bool, usage: Usage) -> None:
        """How many instructions the proposer model wrote, and what that took."""
        self.outcome = RoundOutcome.MODEL_FAILED if model_failed else RoundOutcome.FINISHED
        self.usage = usage
        self._tell(instructions=instructions)
