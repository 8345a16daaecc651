"""Rollouts, their traces and their rewards."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field, StrictBool

from prefect_mipro.errors import RewardInvalid
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.chat import ChatMessage, Usage
from prefect_mipro.models.judgements import SCORE_KEYS, score_of


class Rollout(Record):
    """One run of the user's program. Its candidate is pinned by its first call and never changes.

    `position` counts a session's rollouts in the order of their pins, from 1. `propensity` is the
    probability with which selection chose the candidate. A rollout of a duel
    also carries the reward predicted before it ran (`optimizer.promotion`). After a fallback
    `candidate_id` is the one that answered and `failed_candidate_id` the one that was chosen.

    `applied` is whether the candidate's prompt was in any of its calls, `None` while that is not
    known. A rollout whose calls were all sent as they came says nothing about its candidate.
    """

    session_id: str
    rollout_id: str
    candidate_id: str
    correlation_id: str | None = None
    example_id: str | None = None
    propensity: float = 1.0
    duel_number: int | None = None
    predicted_reward: float | None = None
    pinned_at: datetime
    position: int | None = None
    reward: float | None = None
    applied: bool | None = None
    epoch: int = 1
    given_up_at: datetime | None = None
    failure: FailureKind | None = None
    failed_candidate_id: str | None = None

    @property
    def is_evidence(self) -> bool:
        """Whether its reward counts for its candidate."""
        return self.applied is not False

    @property
    def fell_back(self) -> bool:
        """Whether another candidate answered than the one that was chosen."""
        return self.failed_candidate_id not in (None, self.candidate_id)


class FailureKind(StrEnum):
    """How a call failed because of its prompt.

    A refused call has no answer. The others are answers that hardly anyone can use: a reward above
    the bottom of the range says that the caller could.
    """

    REFUSED = "refused"
    FILTERED = "filtered"
    EMPTY = "empty"
    CUT = "cut"


class CallFailure(Record):
    """A call that failed because of its candidate's prompt, and not by an outage.

    `shares` are the candidates' shares of the traffic when its rollout was pinned. A refusal for
    length tells the `demonstration_room`: how many characters of demonstrations would have fit.
    """

    candidate_id: str
    kind: FailureKind
    reason: str
    shares: dict[str, float]
    demonstration_room: int | None = None


class FailedRollout(Record):
    """A failed rollout as evidence: whose call failed, and the shares of the traffic then."""

    candidate_id: str
    shares: dict[str, float]


class Trace(Record):
    """Request and response of one call, proxied or made elsewhere.

    `messages` are those sent upstream, after the candidate was put in. `input` is the text of the
    last user message and `output` the text of the answer; both are empty when there is none.
    `unapplied_reason` is empty when the candidate's prompt took the baseline's place, else the
    reason why it could not. `model` is the one that the answer names. `first_byte_seconds` is the
    time to the first token of a stream, else to the first byte. `latency_seconds` is `None` where
    a program that called its model itself does not know it. `estimated` says that nobody told the
    tokens, so that they are guessed from the texts.
    """

    trace_id: str
    session_id: str
    rollout_id: str
    candidate_id: str
    messages: tuple[ChatMessage, ...]
    response: JsonObject | None
    input: str
    output: str
    unapplied_reason: str = ""
    status: int
    error: str = ""
    latency_seconds: float | None
    first_byte_seconds: float | None = None
    usage: Usage = Usage()
    estimated: bool = False
    cost_usd: float | None = None
    model: str | None = None
    created_at: datetime


def user_of(metadata: JsonObject | None) -> str | None:
    """The end user whom a reward's `metadata.user` names: non-empty text, or a whole number."""
    user = (metadata or {}).get("user")
    if isinstance(user, bool) or not isinstance(user, str | int):
        return None
    return str(user).strip() or None


class RewardInfo(Record):
    """The wire's `reward_info`: a score, and what the caller says about it in words."""

    score: float
    feedback: str | None = None

    @classmethod
    def parse(cls, reward_info: JsonObject) -> RewardInfo:
        """Take `score`, else `outcome_reward`, else `reward`; a finite number, or RewardInvalid."""
        key = next((key for key in SCORE_KEYS if reward_info.get(key) is not None), None)
        if key is None:
            raise RewardInvalid(
                f"reward_info has no number under any of {', '.join(SCORE_KEYS)}; "
                'send for example {"score": 1.0}'
            )
        score = score_of(reward_info[key], name=f"reward_info.{key}")
        feedback = reward_info.get("feedback")
        return cls(score=score, feedback=feedback if isinstance(feedback, str) else None)


class RewardRequest(Record):
    """Body of a reward call."""

    reward_info: JsonObject
    artifact: JsonObject | None = None
    metadata: JsonObject | None = None
    correlation_id: str | None = None
    rollout_id: str | None = None
    candidate_id: str | None = None
    trace_ref: str | None = None
    shareable: StrictBool | None = None
    stop: StrictBool | None = None


class Reward(Record):
    """A reward as it came in. `value` is scaled to [0, 1], `score` is what the caller sent.

    `rollout_id` is `None` while it waits for a rollout of its correlation id. `shareable` says that
    the texts of its rollout may be shown to other users, as a worked example.
    """

    reward_id: str
    session_id: str
    rollout_id: str | None
    candidate_id: str | None
    correlation_id: str | None = None
    score: float
    value: float
    feedback: str | None = None
    expected: str | None = None
    example_id: str | None = None
    trace_ref: str | None = None
    shareable: bool = False
    artifact: JsonObject | None = None
    metadata: JsonObject | None = None
    received_at: datetime


class RewardReceipt(Record):
    """Answer to a reward call: what was counted, and for whom.

    Where `prompt_applied` is false, all calls of the rollout were sent as they came, without the
    candidate's prompt: the reward is kept, and does not count for the candidate. It is null while
    nothing is known of its calls.
    """

    status: str
    session_id: str
    rollout_id: str | None
    candidate_id: str | None
    reward: float
    attached: bool
    duplicate: bool = False
    prompt_applied: bool | None = None


class ExampleTrace(Record):
    """A rewarded call as the proposer and the demonstration pool see it.

    `user` is the one that the reward's metadata names. `shareable` is the caller's word that the
    texts may be shown to other users.
    """

    trace_id: str
    rollout_id: str
    candidate_id: str
    example_id: str | None = None
    input: str
    output: str
    reward: float
    expected: str | None = None
    feedback: str | None = None
    correlation_id: str | None = None
    user: str | None = None
    shareable: bool = False


class RolloutReport(Record):
    """A rewarded rollout, as lists show it.

    `reward` is scaled to [0, 1], `score` is what the caller sent. `input` and `output` are the
    texts of its call, empty where it made several calls or none with text; `traces` has them all.
    """

    rollout_id: str
    candidate_id: str
    candidate_number: int
    reward: float
    score: float
    feedback: str | None = None
    expected: str | None = None
    example_id: str | None = None
    correlation_id: str | None = None
    prompt_applied: bool | None = None
    failure: FailureKind | None = None
    input: str = ""
    output: str = ""
    pinned_at: datetime
    rewarded_at: datetime


class RolloutOrder(StrEnum):
    """The order of a list of rollouts: the newest reward first, or the lowest."""

    NEWEST = "newest"
    WORST = "worst"


class SeedEval(Record):
    """One rewarded rollout in the wire's seed-eval resource."""

    seed_eval_id: str
    candidate_id: str
    system_id: str
    rollout_id: str
    split: str | None = None
    seed: int | None = None
    reward: float
    avg_reward: float
    success: bool
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
