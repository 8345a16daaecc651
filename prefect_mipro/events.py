"""What Prefect's automations are told about sessions, candidates and champions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from prefect.events import emit_event

from prefect_mipro.models.sessions import CandidateReport, SessionState, SessionStatus

RESOURCE_PREFIX = "prefect-mipro.session."
CAUSE_LABEL = "prefect-mipro.cause"

Fact = str | int | float | None


class SessionEvent(StrEnum):
    """All events. Their resource is the session, `prefect-mipro.session.<id>`."""

    CREATED = "prefect-mipro.session.created"
    RESUMED = "prefect-mipro.session.resumed"
    PAUSED = "prefect-mipro.session.paused"
    CANCELLED = "prefect-mipro.session.cancelled"
    FINISHED = "prefect-mipro.session.finished"
    PROPOSED = "prefect-mipro.candidate.proposed"
    RETIRED = "prefect-mipro.candidate.retired"
    PROMOTED = "prefect-mipro.champion.promoted"


class Cause(StrEnum):
    """What made a champion: a duel of the session, a policy, a person, or a way back.

    `DUEL` means the champion of the session's own traffic, the others one that a `PromptChampion`
    block holds.
    """

    DUEL = "duel"
    AUTOMATIC = "automatic"
    APPROVAL = "approval"
    ROLL_BACK = "roll-back"


def tell(
    event: SessionEvent,
    session_id: str,
    *,
    cause: Cause | None = None,
    **facts: Fact,
) -> None:
    """Emit the event; the run that does so is related to it. Never raises, and waits for nothing.

    The cause is a label of the resource, because triggers match labels and not payloads.
    """
    label = {CAUSE_LABEL: str(cause)} if cause else {}
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"{RESOURCE_PREFIX}{session_id}",
            "prefect.resource.name": session_id,
            **label,
        },
        payload={"session_id": session_id, **facts},
    )


def tell_changes(before: SessionStatus, after: SessionStatus) -> None:
    """Emit what a run has seen happen to its session: candidates, champion, end."""
    for change in changes(before, after):
        tell(change.event, after.session_id, cause=change.cause, **change.facts)


@dataclass(frozen=True)
class Change:
    """What is to be told."""

    event: SessionEvent
    facts: dict[str, Fact]
    cause: Cause | None = None


def changes(before: SessionStatus, after: SessionStatus) -> Iterator[Change]:
    """New candidates, retired ones, the champion of a won duel, and another state."""
    for candidate_id, candidate in after.candidates.items():
        known = before.candidates.get(candidate_id)
        facts = _facts(candidate)
        if known is None:
            yield Change(SessionEvent.PROPOSED, facts)
        if candidate.status == "retired" and (known is None or known.status != "retired"):
            yield Change(SessionEvent.RETIRED, facts)
    if after.champion_candidate_id != before.champion_candidate_id:
        champion = after.candidates[after.champion_candidate_id]
        facts = {**_facts(champion), "previous_candidate_id": before.champion_candidate_id}
        yield Change(SessionEvent.PROMOTED, facts, Cause.DUEL)
    if after.status is not before.status:
        yield Change(_EVENT_OF[after.status], {"stop_reason": after.stop_reason})


def _facts(candidate: CandidateReport) -> dict[str, Fact]:
    return {
        "candidate_id": candidate.candidate_id,
        "number": candidate.number,
        "origin": candidate.origin,
    }


_EVENT_OF = {
    SessionState.RUNNING: SessionEvent.RESUMED,
    SessionState.PAUSED: SessionEvent.PAUSED,
    SessionState.CANCELLED: SessionEvent.CANCELLED,
    SessionState.SUCCEEDED: SessionEvent.FINISHED,
}
