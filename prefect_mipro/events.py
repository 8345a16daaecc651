"""What Prefect's automations are told about sessions, candidates and champions."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

from prefect.events import emit_event

from prefect_mipro.models.sessions import SessionState, SessionStatus

RESOURCE_PREFIX = "prefect-mipro.session."
CAUSE_LABEL = "prefect-mipro.cause"


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
    **facts: str | int | float | None,
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
    """What a run has seen happen to its session: new and retired candidates, champion, end."""
    session_id = after.session_id
    for candidate_id, candidate in after.candidates.items():
        known = before.candidates.get(candidate_id)
        told = partial(
            tell,
            session_id=session_id,
            candidate_id=candidate_id,
            number=candidate.number,
            origin=candidate.origin,
        )
        if known is None:
            told(SessionEvent.PROPOSED)
        if candidate.status == "retired" and (known is None or known.status != "retired"):
            told(SessionEvent.RETIRED)
    if after.champion_candidate_id != before.champion_candidate_id:
        champion = after.candidates[after.champion_candidate_id]
        tell(
            SessionEvent.PROMOTED,
            session_id,
            cause=Cause.DUEL,
            candidate_id=champion.candidate_id,
            number=champion.number,
            previous_candidate_id=before.champion_candidate_id,
        )
    if after.status is not before.status and (event := _EVENT_OF.get(after.status)):
        tell(event, session_id, stop_reason=after.stop_reason)


_EVENT_OF = {
    SessionState.RUNNING: SessionEvent.RESUMED,
    SessionState.PAUSED: SessionEvent.PAUSED,
    SessionState.CANCELLED: SessionEvent.CANCELLED,
    SessionState.SUCCEEDED: SessionEvent.FINISHED,
}
