"""Words of the older dialect: session actions, and the system routes of older programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field, StrictBool, StrictFloat

from prefect_mipro.errors import InputInvalid, RewardInvalid
from prefect_mipro.models.base import JsonObject, Record, RolloutId, SessionId
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import Event, SessionState, SessionStatus
from prefect_mipro.server.routes.dependencies import (
    Integer,
    Limit,
    RequestKey,
    RolloutsOf,
    SessionsOf,
    api_router,
)
from prefect_mipro.server.routes.errors import short
from prefect_mipro.server.routes.sessions import PROMPT_LEARNING_PREFIX

TAG = "prompt-learning (older dialect)"
router = api_router("", tag=TAG)
SYSTEMS = "/api/prompt-learning/online/mipro/systems"


Change = Callable[[SessionId, SessionsOf], Awaitable[SessionStatus]]

# The older words for a change of state, with what they do.
_STATE_AFTER = {
    "pause": (SessionState.PAUSED, "Pause a session."),
    "resume": (SessionState.RUNNING, "Resume a session."),
    "cancel": (SessionState.CANCELLED, "Cancel a session, for good."),
}


def _change_to(state: SessionState) -> Change:
    async def change_state(session_id: SessionId, sessions: SessionsOf) -> SessionStatus:
        return await sessions.change_state(session_id, state)

    return change_state


for word, (state_after, summary) in _STATE_AFTER.items():
    router.add_api_route(
        f"{PROMPT_LEARNING_PREFIX}/{{session_id}}/{word}",
        _change_to(state_after),
        methods=["POST"],
        name=word,
        description=summary,
    )


class RolloutReport(Record):
    """The older reward call. `status` is `reward` or `done`; a `done` may carry the reward."""

    rollout_id: RolloutId
    status: str
    reward: StrictBool | StrictFloat | None = None
    candidate_id: str | None = None
    metadata: JsonObject | None = None


@router.post(SYSTEMS + "/{session_id}/status")
async def report_rollout(
    session_id: SessionId,
    report: RolloutReport,
    sessions: SessionsOf,
    rollouts: RolloutsOf,
    request_key: RequestKey = None,
) -> JsonObject:
    """Report a rollout's reward or its end."""
    if report.reward is None:
        if report.status == "reward":
            raise RewardInvalid('the report has status "reward" and no number under reward')
        found = await rollouts.find(session_id, report.rollout_id)
        return {
            "status": "accepted",
            "session_id": session_id,
            "rollout_id": report.rollout_id,
            "candidate_id": found.candidate_id,
        }
    request = RewardRequest(
        reward_info={"score": report.reward},
        rollout_id=report.rollout_id,
        candidate_id=report.candidate_id,
        metadata=report.metadata,
    )
    receipt = await rollouts.reward(session_id, request, request_key=request_key)
    return receipt.model_dump(mode="json")


@router.get(SYSTEMS + "/{session_id}/state")
async def state(session_id: SessionId, sessions: SessionsOf) -> SessionStatus:
    """The older name of a session's status."""
    return await sessions.status(session_id)


@router.get(SYSTEMS + "/{session_id}/events")
async def events(
    session_id: SessionId,
    sessions: SessionsOf,
    since_seq: Annotated[Integer, Query(description="show later ones only")] = 0,
    limit: Limit = 500,
) -> dict[str, list[Event]]:
    """What happened in a session, oldest first."""
    found = await sessions.events(session_id, since=since_seq, limit=limit)
    return {"events": list(found)}


class Replacement(Record):
    """Text to put in place of other text of the baseline's message."""

    old_text: str = Field(min_length=1)
    new_text: str
    apply_to_role: str = "system"


class Transformation(Record):
    """The older form of a candidate: replacements in the baseline prompt."""

    text_replacements: list[Replacement] = Field(default_factory=list)
    example_injections: list[Any] = Field(default_factory=list)


class Deltas(Record):
    """What the candidate changes: the whole instruction, or parts of it."""

    instruction_text: str | None = None
    transformation: Transformation = Transformation()


class CandidateLabel(Record):
    """What the caller calls the candidate."""

    label: str | None = Field(default=None, max_length=200)


class CandidateDeltas(Record):
    """Body of the older call that adds a candidate."""

    deltas: Deltas
    metadata: CandidateLabel = CandidateLabel()


@router.post(SYSTEMS + "/{session_id}/candidates")
async def add_candidate(
    session_id: SessionId, candidate: CandidateDeltas, sessions: SessionsOf
) -> JsonObject:
    """Let an instruction of your own compete."""
    status = await sessions.status(session_id)
    baseline = status.candidates[status.baseline_candidate_id].instruction
    return await sessions.add_candidate(
        session_id,
        instruction=_instruction(candidate.deltas, baseline),
        label=candidate.metadata.label,
    )


def _instruction(deltas: Deltas, baseline: str) -> str:
    """The instruction that the deltas make of the baseline's. Raises InputInvalid."""
    if deltas.instruction_text is not None:
        return deltas.instruction_text
    if not deltas.transformation.text_replacements:
        raise InputInvalid("deltas change nothing; send instruction_text or text_replacements")
    if deltas.transformation.example_injections:
        raise InputInvalid(
            "example_injections are not taken here: demonstrations come from rewarded rollouts"
        )
    text = baseline
    for replacement in deltas.transformation.text_replacements:
        if replacement.apply_to_role != "system":
            raise InputInvalid(
                f"apply_to_role is {replacement.apply_to_role!r}; "
                "only the system message is optimized"
            )
        if replacement.old_text not in text:
            raise InputInvalid(
                f"old_text {short(repr(replacement.old_text))} is not in the baseline instruction"
            )
        text = text.replace(replacement.old_text, replacement.new_text)
    return text
