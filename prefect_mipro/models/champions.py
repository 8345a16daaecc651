"""Champions as other programs use them: a prompt to send, with its evidence and where it came from.

What a session knows of its champion ends with the session's backend; these records outlive it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from prefect_mipro.models.base import Record, SessionId
from prefect_mipro.models.candidates import DuelState
from prefect_mipro.models.chat import SYSTEM_ROLES, ChatMessage
from prefect_mipro.models.leases import Lease
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.placeholders import Placeholder, fill, texts_of
from prefect_mipro.models.sessions import CandidateReport, SessionStatus


class Evidence(Record):
    """What a candidate had earned, beside the baseline, when it was promoted.

    Means and 95 % intervals are the session's belief. `e_value` and `threshold` are those of the
    duel that it won, if it won one.
    """

    mean: float
    interval: tuple[float, float]
    rewards: int
    baseline_mean: float
    baseline_interval: tuple[float, float]
    baseline_rewards: int
    probability_better: float | None = None
    e_value: float | None = None
    threshold: float | None = None

    @classmethod
    def of(cls, candidate: CandidateReport, status: SessionStatus) -> Evidence:
        """As the status tells it."""
        baseline = status.candidates[status.baseline_candidate_id]
        duel = status.duel
        won = (
            duel is not None
            and duel.state == DuelState.WON
            and duel.challenger_id == candidate.candidate_id
        )
        return cls(
            mean=candidate.mean,
            interval=candidate.interval,
            rewards=candidate.reward_count,
            baseline_mean=baseline.mean,
            baseline_interval=baseline.interval,
            baseline_rewards=baseline.reward_count,
            # Against the champion; of the champion itself it means nothing.
            probability_better=(
                None
                if candidate.candidate_id == status.champion_candidate_id
                else candidate.probability_better
            ),
            e_value=duel.e_value if won and duel else None,
            threshold=duel.threshold if won and duel else None,
        )


class Ancestor(Record):
    """A candidate that the champion came from, and how that one was made."""

    candidate_id: str
    number: int
    origin: str


class ChampionVersion(Record):
    """One promoted prompt: all that a program needs to send it, and why it was promoted."""

    session_id: SessionId = Field(
        title="Session id", description="Id of the session that found the prompt."
    )
    candidate_id: str = Field(
        title="Candidate id", description="Id of the promoted candidate in its session."
    )
    number: int = Field(description="Number of the candidate in its session; the baseline is 1.")
    messages: tuple[ChatMessage, ...] = Field(
        description="The prompt in the form of OpenAI's API, its {placeholders} not yet filled."
    )
    placeholders: tuple[Placeholder, ...] = Field(
        default=(), description="The variables of the prompt, for which `render` takes the texts."
    )
    demonstrations: tuple[Demonstration, ...] = Field(
        default=(), description="The worked examples among the messages."
    )
    model: str | None = Field(
        default=None, description="Name of the model with which the evidence was gathered."
    )
    evidence: Evidence | None = Field(
        default=None, description="What the candidate had earned when it was promoted."
    )
    lineage: tuple[Ancestor, ...] = Field(
        default=(), description="The candidates that it came from, its parent first."
    )
    reason: str = Field(default="", description="Why it was promoted.")
    promoted_by: str = Field(default="", description="Who or what promoted it.")
    promoted_at: datetime = Field(title="Promoted at", description="When it was promoted.")

    @classmethod
    def of(
        cls,
        lease: Lease,
        status: SessionStatus,
        *,
        reason: str,
        promoted_by: str,
        promoted_at: datetime,
    ) -> ChampionVersion:
        """The version of a candidate, from a lease and a status of its session.

        Args:
            lease: A lease of the candidate with its placeholders left as they are (`render=True`).
            status: The session's status, for the evidence and the lineage.
            reason: Why the candidate is promoted.
            promoted_by: Who or what promotes it.
            promoted_at: When it is promoted.

        Returns:
            The version.
        """
        candidate = status.candidates[lease.candidate_id]
        return cls(
            session_id=lease.session_id,
            candidate_id=lease.candidate_id,
            number=lease.number,
            messages=lease.messages,
            placeholders=lease.placeholders,
            demonstrations=tuple(
                demonstration
                for demonstration in lease.levers.demonstrations.demonstrations
                if {"role": "user", "content": demonstration.input} in lease.messages
            ),
            model=lease.policy.model,
            evidence=Evidence.of(candidate, status),
            lineage=_ancestors(candidate, status),
            reason=reason,
            promoted_by=promoted_by,
            promoted_at=promoted_at,
        )

    @property
    def instruction(self) -> str:
        """The text of the first system message; empty when there is none."""
        found = (m["content"] for m in self.messages if m.get("role") in SYSTEM_ROLES)
        return str(next(found, ""))

    def render(self, **inputs: Any) -> list[ChatMessage]:
        """Fill the prompt's placeholders.

        Args:
            **inputs: The text or number of each placeholder. Others are ignored, so that a whole
                row may be given.

        Returns:
            The messages to send. Demonstrations are left as they are, whatever braces they hold.

        Raises:
            InputInvalid: An input is missing.
        """
        texts = texts_of(self.placeholders, inputs, name="the inputs of render")
        outside = (i for i, m in enumerate(self.messages) if m.get("role") not in SYSTEM_ROLES)
        first = next(outside, len(self.messages))
        shown = range(first, first + 2 * len(self.demonstrations))
        return [
            dict(message) if position in shown else _filled(message, texts)
            for position, message in enumerate(self.messages)
        ]


class PromotionOutcome(StrEnum):
    """The result of a promotion flow.

    Another prompt is in use; the one in use stays; a person declined the candidate, put the
    decision off, or answered a question that the present state has overtaken; another run is
    already asking about the candidate; an earlier prompt is in use again; or there is no session
    yet.
    """

    PROMOTED = "promoted"
    UNCHANGED = "unchanged"
    DECLINED = "declined"
    POSTPONED = "postponed"
    STALE = "stale"
    ASKED = "asked already"
    ROLLED_BACK = "rolled back"
    NO_SESSION = "no session"


class PromotionSummary(Record):
    """What a promotion flow did. `champion` is the name of the block that programs load.

    `candidate_id` and `number` are those of the prompt in use; without a session there is neither,
    and `reason` says so.
    """

    session_id: str
    champion: str
    outcome: PromotionOutcome
    candidate_id: str | None = None
    number: int | None = None
    previous_candidate_id: str | None = None
    reason: str = ""
    artifact_key: str | None = None
    evidence: Evidence | None = None


def _filled(message: ChatMessage, texts: Mapping[str, str]) -> ChatMessage:
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    return {**message, "content": fill(content, texts)}


def _ancestors(candidate: CandidateReport, status: SessionStatus) -> tuple[Ancestor, ...]:
    found: dict[str, Ancestor] = {}
    parent = status.candidates.get(candidate.parent_id or "")
    while parent is not None and parent.candidate_id not in found:
        found[parent.candidate_id] = Ancestor(
            candidate_id=parent.candidate_id, number=parent.number, origin=parent.origin
        )
        parent = status.candidates.get(parent.parent_id or "")
    return tuple(found.values())
