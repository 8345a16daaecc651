"""Sessions: what creates one, what it is, and what its status says."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, StrictBool, model_validator

from prefect_mipro.models.base import LONGEST_REASON, JsonObject, Record, SessionId
from prefect_mipro.models.keys import DEFAULT_WORKSPACE
from prefect_mipro.models.levers import LeverActor, MiproLeverSummary
from prefect_mipro.models.reviews import DemonstrationReview
from prefect_mipro.models.sensors import SensorFrameSummary


class SessionState(StrEnum):
    """Where a session stands. Cancelled and succeeded are final."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"

    @property
    def final(self) -> bool:
        """Whether no further state can follow."""
        return self in (SessionState.CANCELLED, SessionState.SUCCEEDED)


class SystemRequest(Record):
    """The `system` of a create call."""

    name: str | None = None
    id: str | None = None


class CreateSession(Record):
    """Body of a create call, both dialects. Fields that are not known are kept, to warn of them."""

    model_config = ConfigDict(extra="allow")

    kind: str = "mipro_online"
    technique: str | None = None
    system: SystemRequest | None = None
    session_id: SessionId | None = None
    correlation_id: str | None = None
    agent_id: str | None = None
    config_body: JsonObject | None = None
    config: JsonObject | None = None
    config_name: str | None = None
    config_path: str | None = None
    overrides: JsonObject = Field(default_factory=dict)
    metadata: JsonObject = Field(default_factory=dict)


class StateChange(Record):
    """Body of a state change."""

    state: Literal["running", "paused", "cancelled"]


class Promote(Record):
    """Body of a call that makes a candidate the champion."""

    candidate_id: str
    reason: str = Field(default="promoted by the caller", max_length=LONGEST_REASON)


class NewEpoch(Record):
    """Body of a call that begins an epoch."""

    reason: str = Field(default="begun by the caller", max_length=LONGEST_REASON)


class Session(Record):
    """One optimization of one program's levers, as the store keeps it.

    Only keys of its `workspace` see it. `version` grows with every change. `proposal_number`
    counts finished proposal rounds. `serving_*` remember the candidate of the newest rollout and
    how many in a row it served. `rollouts` were pinned and `rewards` attached so far, of which
    `removed_rollouts` are not kept any more; `promoted_at` is the number of rollouts at the last
    promotion. Belief rests on the rewards of the present
    `epoch` alone.
    """

    session_id: str
    workspace: str = DEFAULT_WORKSPACE
    state: SessionState
    config: JsonObject
    metadata: JsonObject = Field(default_factory=dict)
    correlation_id: str | None = None
    agent_id: str | None = None
    kind: str = "mipro_online"
    system_name: str | None = None
    proxy_secret: str
    digest_key: str
    baseline_id: str
    champion_id: str
    proposal_number: int = 0
    proposal_rewards: int = 0
    proposal_failures: int = 0
    proposal_error: str | None = None
    proposal_warning: str | None = None
    proposed_at: datetime | None = None
    serving_candidate_id: str | None = None
    serving_rollouts: int = 0
    proposer_prompt_tokens: int = 0
    proposer_completion_tokens: int = 0
    rollouts: int = 0
    rewards: int = 0
    removed_rollouts: int = 0
    epoch: int = 1
    promotions: int = 0
    promoted_at: int = 0
    stop_reason: str | None = None
    version: int = 1
    created_at: datetime
    updated_at: datetime


class DeletedSession(Record):
    """Answer to a deletion: nothing is left of the session, and its id is free."""

    session_id: str
    deleted: Literal[True] = True


class ForgetSubject(StrEnum):
    """What names the rollouts that are to be forgotten."""

    ROLLOUT_ID = "rollout_id"
    EXAMPLE_ID = "example_id"
    CORRELATION_ID = "correlation_id"
    USER = "user"


class ForgetRequest(Record):
    """Body of a call that forgets: exactly one subject. `dry_run` changes nothing.

    `user` is the `user` of the rewards' metadata.
    """

    rollout_id: str | None = Field(default=None, min_length=1)
    example_id: str | None = Field(default=None, min_length=1)
    correlation_id: str | None = Field(default=None, min_length=1)
    user: str | None = Field(default=None, min_length=1)
    dry_run: StrictBool = False

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        named = [subject for subject in ForgetSubject if getattr(self, subject) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of {', '.join(ForgetSubject)}")
        return self

    @property
    def subject(self) -> ForgetSubject:
        """Which of them is named."""
        return next(subject for subject in ForgetSubject if getattr(self, subject) is not None)

    @property
    def value(self) -> str:
        """The id, or the user's name."""
        return str(getattr(self, self.subject))


class ForgetReport(Record):
    """Answer to a call that forgets: what is gone, or with `dry_run` what would go.

    `lever_versions` are those that showed one of the texts, such as `demonstrations 3`, and
    `retired_candidates` the candidates made of them. The champion is the one afterwards.
    """

    session_id: str
    subject: ForgetSubject
    dry_run: bool
    rollouts: int
    calls: int
    lever_versions: tuple[str, ...] = ()
    retired_candidates: tuple[str, ...] = ()
    champion_candidate_id: str


class Retire(Record):
    """Body of a call that retires a candidate or a lever version."""

    reason: str = Field(default="retired by hand", min_length=1, max_length=LONGEST_REASON)


class RetiredCandidates(Record):
    """Answer to a call that retires: the candidates taken out of play, and the champion now."""

    session_id: str
    retired_candidates: tuple[str, ...]
    champion_candidate_id: str
    champion_replaced: bool


class SessionUrls(Record):
    """Where the session is reached. All three are absolute and stable."""

    online_url: str
    proxy_url: str
    chat_completions_url: str


class CandidateReport(Record):
    """A candidate in the status map: counts, belief and prompt.

    `mean` and `interval` are the posterior mean and its central 95 % interval, `avg_reward` the
    raw mean the wire asks for. `probability_best` and `probability_better` (than the champion)
    come from the same posterior. `cost_usd` is known where the config tells prices: of calls whose
    model has one. `latency_seconds` and `first_byte_seconds` are means over its calls.
    `unapplied_rollouts` ran without its prompt, and their rewards are not among `reward_count`.
    Of its `calls`, `failed_calls` failed for any reason, outages included; `failures` are rollouts
    that failed because of the candidate's prompt, `failure_rate` is their share of its calls, and
    `last_failure` says how the last one did.
    """

    candidate_id: str
    number: int
    parent_id: str | None
    label: str | None
    status: str
    instruction_version: int
    demonstrations_version: int
    rollout_count: int
    reward_count: int
    avg_reward: float | None
    mean: float
    interval: tuple[float, float]
    probability_best: float
    probability_better: float
    calls: int = 0
    failed_calls: int
    failures: int = 0
    failure_rate: float | None = None
    last_failure: str | None = None
    retired_reason: str | None = None
    unapplied_calls: int
    unapplied_rollouts: int = 0
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_seconds: float | None
    first_byte_seconds: float | None = None
    instruction: str
    demonstrations: list[dict[str, str]]
    origin: str
    created_at: datetime
    stage_payloads: JsonObject = Field(default_factory=dict)
    deltas: JsonObject | None = None
    baseline_messages: list[JsonObject] | None = None


class ContextApply(Record):
    """How often the candidate's prompt could take the baseline's place.

    `unapplied_rollouts` are those in none of whose calls it could: they are no evidence.
    `last_reason` says why, of the last call without it.
    """

    calls: int
    unapplied_calls: int
    unapplied_rollouts: int = 0
    last_reason: str | None = None


class ProposerReport(Record):
    """What the proposer did last, and what it waits for.

    `warning` says what the last round could not learn from, and why.
    """

    rounds: int
    failures: int
    error: str | None
    waiting_for: str | None
    warning: str | None = None


class LeverLineage(Record):
    """Where the version of a lever came from."""

    version: int
    parent_version: int | None
    actor: LeverActor
    operator: str
    reason: str
    template_version: str | None
    source_trace_ids: tuple[str, ...]
    created_at: datetime


class RewardFlow(Record):
    """How far the rewards are.

    `in_flight` rollouts are awaited, `missing` ones given up; rollouts that are no evidence are in
    none of the counts. Up to the position `watermark`, in the order in which rollouts began, each
    has its reward or is missing: the reward curve and the evidence of a duel end there, because
    early rewards alone may mislead.
    """

    rewarded: int
    in_flight: int
    missing: int
    watermark: int


class Spending(Record):
    """Tokens so far, of policy and proposer, and their cost where the config tells prices."""

    prompt_tokens: int
    completion_tokens: int
    proposer_prompt_tokens: int
    proposer_completion_tokens: int
    cost_usd: float | None

    @property
    def tokens(self) -> int:
        """All of them."""
        return (
            self.prompt_tokens
            + self.completion_tokens
            + self.proposer_prompt_tokens
            + self.proposer_completion_tokens
        )


class DuelReport(Record):
    """A duel in words and numbers.

    `e_value` at or above `threshold` promotes; `e_value_against`, the evidence that the challenger
    is no better, ends the duel there. `observations` are its settled rollouts, and
    `detectable_lift` is the lift that so many prove about half of the time.
    """

    number: int
    champion_id: str
    challenger_id: str
    state: str
    rollouts: int
    rewards: int
    observations: int
    e_value: float
    e_value_against: float
    threshold: float
    predicted_lift: float
    detectable_lift: float


class SessionStatus(SessionUrls):
    """The status object, section 7 of the wire protocol, plus the belief behind it.

    Of the rollouts and rewards that are counted, `removed_rollout_count` are not kept any more.
    `reward_curve` holds (last position, mean reward) of consecutive stretches of the traffic.
    `reviews` are the demonstration sets that wait for a person.
    `exploration_value` is what knowing every candidate's mean reward would add to the best one's.
    """

    session_id: str
    system_id: str
    job_id: str
    kind: str
    algorithm: str = "mipro"
    status: SessionState
    state: SessionState
    correlation_id: str | None
    agent_id: str | None
    version: int
    rollout_count: int
    reward_count: int
    removed_rollout_count: int = 0
    proposal_seq: int
    best_reward: float | None
    best_score: float | None
    best_candidate_id: str
    best_candidate: JsonObject
    champion_candidate_id: str
    baseline_candidate_id: str
    lever_summary: MiproLeverSummary
    lever_versions: dict[str, int]
    best_lever_version: int
    prompt_lever_id: str
    candidate_lever_versions: dict[str, int]
    sensor_frames: list[SensorFrameSummary]
    candidates: dict[str, CandidateReport]
    attempted_candidates: list[JsonObject]
    optimized_candidates: list[JsonObject]
    attempted_transforms: list[JsonObject] = Field(default_factory=list)
    context_apply: ContextApply
    proposer: ProposerReport
    duel: DuelReport | None = None
    reward_flow: RewardFlow
    reward_curve: list[tuple[int, float]] = Field(default_factory=list)
    exploration_value: float
    spending: Spending
    epoch: int
    promotions: int
    stop_reason: str | None = None
    reviews: tuple[DemonstrationReview, ...] = ()
    warnings: list[str] = Field(default_factory=list)
    metadata: JsonObject = Field(default_factory=dict)
    created_at: datetime
    updated_at: datetime


class Event(Record):
    """One entry of a session's event feed; `seq` counts from 1 without gaps."""

    session_id: str
    seq: int
    event_type: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
