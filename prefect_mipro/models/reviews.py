"""Reviews: demonstration sets that a person approves or declines before they are served."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictInt

from prefect_mipro.models.base import LONGEST_REASON, Record
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import Demonstration, LeverVersion, Review, ReviewState


class ReviewDecision(StrEnum):
    """What a person decides on a demonstration set."""

    APPROVE = "approve"
    DECLINE = "decline"

    @property
    def state(self) -> ReviewState:
        """The review's state after the decision."""
        return ReviewState.APPROVED if self is ReviewDecision.APPROVE else ReviewState.DECLINED


class ReviewRequest(Record):
    """Body of a call that decides on a demonstration set.

    `without` are positions of demonstrations, from 1, that an approval leaves out. What is left out
    or declined is never proposed again. `by` names the person.
    """

    decision: ReviewDecision
    without: tuple[Annotated[StrictInt, Field(ge=1)], ...] = ()
    by: str = Field(default="", max_length=LONGEST_REASON)
    reason: str = Field(default="", max_length=LONGEST_REASON)


class DemonstrationReview(Record):
    """A demonstration set and its review.

    `by`, `reason` and `decided_at` are those of the decision. `candidate_id` is the candidate that
    an approval made.
    """

    session_id: str
    version: int
    state: ReviewState
    demonstrations: tuple[Demonstration, ...]
    created_at: datetime
    by: str = ""
    reason: str = ""
    decided_at: datetime | None = None
    candidate_id: str | None = None

    @classmethod
    def of(
        cls, session_id: str, version: LeverVersion, candidates: Sequence[Candidate] = ()
    ) -> DemonstrationReview:
        """The review of a version, and its candidate if it is among the candidates."""
        review = version.provenance.review or Review(state=ReviewState.WAITING)
        made = (c.candidate_id for c in candidates if c.demonstrations_version == version.version)
        return cls(
            session_id=session_id,
            version=version.version,
            state=review.state,
            demonstrations=version.demonstrations,
            created_at=version.created_at,
            by=review.by,
            reason=review.reason,
            decided_at=review.at,
            candidate_id=next(made, None),
        )
