"""Levers: what the optimizer may change, their versions and where each came from."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from prefect_mipro.models.base import Record


class LeverActor(StrEnum):
    """Who makes lever versions."""

    OPTIMIZER = "optimizer"
    HUMAN = "human"
    SYSTEM = "system"


class LeverName(StrEnum):
    """The two levers of a prompt."""

    INSTRUCTION = "instruction"
    DEMONSTRATIONS = "demonstrations"


class DemonstrationSource(StrEnum):
    """Why a demonstration may be shown to other users.

    The caller marked its input as shareable, a person approved it, or the session allows all
    traffic. Traffic in a session that wants reviews is not shown before a person approves it.
    """

    MARKED = "marked"
    REVIEWED = "reviewed"
    TRAFFIC = "traffic"


class Demonstration(Record):
    """One worked example: what the user turn said and what the assistant should have answered.

    `trace_id` and `rollout_id` name the call it was taken from, `example_id` the caller's example,
    if known.
    """

    input: str
    output: str
    trace_id: str | None = None
    rollout_id: str | None = None
    example_id: str | None = None
    source: DemonstrationSource | None = None


class InstructionValue(Record):
    """The value of an instruction lever: the system text."""

    text: str


class DemonstrationsValue(Record):
    """The value of a demonstrations lever: chat turns in order; none for zero-shot."""

    demonstrations: tuple[Demonstration, ...] = ()


class ReviewState(StrEnum):
    """Whether a person has looked at a demonstration set, and what they decided."""

    WAITING = "waiting"
    APPROVED = "approved"
    DECLINED = "declined"


class Review(Record):
    """A person's decision on a demonstration set: by whom (as the caller says), why, and when."""

    state: ReviewState
    by: str = ""
    reason: str = ""
    at: datetime | None = None


class LeverProvenance(Record):
    """Who made a lever version, why, from which traces, and its review where it needs one."""

    actor: LeverActor = LeverActor.SYSTEM
    reason: str = ""
    operator: str = ""
    template_version: str | None = None
    source_event_id: str | None = None
    source_trace_ids: tuple[str, ...] = ()
    review: Review | None = None


FORGOTTEN = "forgotten"
"""The operator of a lever version that was emptied because of a text that it showed."""


class LeverVersion(Record):
    """One immutable value of a lever, numbered from 1, with its parent."""

    lever: LeverName
    version: int = Field(ge=1)
    value: InstructionValue | DemonstrationsValue
    parent_version: int | None = None
    provenance: LeverProvenance = LeverProvenance()
    created_at: datetime
    retired_at: datetime | None = None

    @property
    def forgotten(self) -> bool:
        """Whether its value was emptied: nothing is to be served with it."""
        return self.provenance.operator == FORGOTTEN

    def review_is(self, state: ReviewState) -> bool:
        """Whether the version has a review in that state."""
        review = self.provenance.review
        return review is not None and review.state is state

    @property
    def text(self) -> str:
        """The instruction text; empty for demonstrations."""
        return self.value.text if isinstance(self.value, InstructionValue) else ""

    @property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        """The demonstrations; none for an instruction."""
        value = self.value
        return value.demonstrations if isinstance(value, DemonstrationsValue) else ()


class MiproLeverSummary(Record):
    """The wire's view of a session's one prompt lever, whose versions are the candidates.

    Our server fills every field; an answer of another backend may lack any.
    """

    prompt_lever_id: str | None = None
    candidate_lever_versions: dict[str, int] = Field(default_factory=dict)
    best_candidate_id: str | None = None
    selected_candidate_id: str | None = None
    baseline_candidate_id: str | None = None
    lever_count: int | None = None
    mutation_count: int | None = None
    latest_version: int | None = None


def prompt_lever_id(session_id: str) -> str:
    """The wire's id of the prompt lever, whose version numbers are candidate numbers."""
    return f"mipro.prompt.{session_id}"


def lever_id(session_id: str, lever: LeverName) -> str:
    """The wire's id of one of the two levers a candidate is made of."""
    return f"mipro.{lever}.{session_id}"


LeverVersions = dict[str, int]
"""Lever id to version number."""


def lever_versions(
    session_id: str, *, number: int, instruction_version: int, demonstrations_version: int
) -> LeverVersions:
    """The versions that a candidate stands for, by the wire's lever ids."""
    return {
        prompt_lever_id(session_id): number,
        lever_id(session_id, LeverName.INSTRUCTION): instruction_version,
        lever_id(session_id, LeverName.DEMONSTRATIONS): demonstrations_version,
    }
