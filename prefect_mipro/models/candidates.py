"""Candidates: one version chosen for every lever, with what their rollouts earned."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from prefect_mipro.models.base import Record
from prefect_mipro.models.levers import LeverName, LeverVersion, LeverVersions, lever_versions


class Statistics(Record):
    """Counts and sums over the rollouts of one candidate. Rewards are scaled to [0, 1].

    `unapplied_rollouts` are those whose calls were all sent without the candidate's prompt: they
    are no evidence, so their rewards, and those that they lack, are counted nowhere else.

    `missing` counts the rollouts that were given up and have no reward still, `first_byte_calls`
    the calls that `first_byte_seconds_sum` is the sum of, and `untimed_calls` those that
    `latency_seconds_sum` leaves out, because nobody knows how long they took. `failures` are
    rollouts that failed because of the candidate's prompt, including those that fell back to
    another candidate.
    """

    rollouts: int = 0
    rewards: int = 0
    missing: int = 0
    reward_sum: float = 0.0
    reward_square_sum: float = 0.0
    calls: int = 0
    failed_calls: int = 0
    unapplied_calls: int = 0
    unapplied_rollouts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_seconds_sum: float = 0.0
    untimed_calls: int = 0
    first_byte_seconds_sum: float = 0.0
    first_byte_calls: int = 0
    cost_usd_sum: float = 0.0
    failures: int = 0

    @property
    def in_flight(self) -> int:
        """Rollouts whose reward is still awaited."""
        return self.rollouts - self.rewards - self.missing - self.unapplied_rollouts

    @property
    def answered_calls(self) -> int:
        """Calls that the model answered, well or not."""
        return self.calls - self.failed_calls

    @property
    def mean_reward(self) -> float | None:
        """The raw mean; `None` without a reward."""
        return self.reward_sum / self.rewards if self.rewards else None


class Arm(Record):
    """A candidate as selection sees it: its lever versions and its statistics.

    Version 1 of a lever is the caller's own.
    """

    candidate_id: str
    levers: tuple[int, ...]
    statistics: Statistics


class Candidate(Record):
    """What a rollout runs with.

    `number` counts a session's candidates from 1 and is the version of the wire's prompt lever.
    `last_failure` says how a call failed last because of its prompt. `demonstration_room` is how
    many characters of demonstrations would have fit where its prompt passed the model's context.
    From `withdrawn_at` on the champion answers even the rollouts that are pinned to it.
    """

    candidate_id: str
    session_id: str
    number: int = Field(ge=1)
    instruction_version: int = Field(ge=1)
    demonstrations_version: int = Field(ge=1)
    parent_id: str | None = None
    label: str | None = None
    created_at: datetime
    retired_at: datetime | None = None
    retired_reason: str | None = None
    last_failure: str | None = None
    demonstration_room: int | None = None
    withdrawn_at: datetime | None = None
    statistics: Statistics = Statistics()

    @property
    def levers(self) -> tuple[int, int]:
        """The versions of (instruction, demonstrations)."""
        return (self.instruction_version, self.demonstrations_version)

    @property
    def lever_versions(self) -> LeverVersions:
        """The versions that the candidate stands for, by the wire's lever ids."""
        return lever_versions(
            self.session_id,
            number=self.number,
            instruction_version=self.instruction_version,
            demonstrations_version=self.demonstrations_version,
        )

    @property
    def arm(self) -> Arm:
        """The candidate as selection sees it."""
        return Arm(candidate_id=self.candidate_id, levers=self.levers, statistics=self.statistics)

    def holds(self, version: LeverVersion) -> bool:
        """Whether the candidate is made of that lever version."""
        return version.version == dict(zip(LeverName, self.levers, strict=True))[version.lever]

    @property
    def active(self) -> bool:
        """Whether selection may still serve it."""
        return self.retired_at is None


class RewardBlock(Record):
    """What a candidate's rollouts of one stretch of the traffic earned.

    A stretch is `last - first + 1` positions in the order of the pins, of one epoch.
    `deviation_sum` adds up, reward by reward, how much easier than others its example was expected
    to be, from what the example earned before (`optimizer.examples`).
    """

    epoch: int
    first: int
    last: int
    candidate_id: str
    rewards: int
    reward_sum: float
    reward_square_sum: float
    deviation_sum: float


class CandidateStatus(StrEnum):
    """The wire's word for how far a candidate has come."""

    PROPOSED = "proposed"
    EVALUATED = "evaluated"
    RETIRED = "retired"


class DuelState(StrEnum):
    """How a duel stands."""

    RUNNING = "running"
    WON = "won"
    LOST = "lost"
    ABANDONED = "abandoned"
    EXPIRED = "expired"


class Duel(Record):
    """A challenger against the champion on fresh traffic, by fair coin.

    Counts and sums are those of its own rollouts. Its evidence is derived from its observations
    (`optimizer.promotion`) and never stored. `rollouts_before` are those the session had served
    when the duel opened.
    """

    session_id: str
    number: int = Field(ge=1)
    champion_id: str
    challenger_id: str
    predicted_lift: float
    state: DuelState = DuelState.RUNNING
    rollouts_before: int = 0
    rollouts: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    started_at: datetime
    ended_at: datetime | None = None


class DuelObservation(Record):
    """One settled rollout of a duel. `predicted_reward` was fixed before it ran."""

    is_challenger: bool
    reward: float
    predicted_reward: float
