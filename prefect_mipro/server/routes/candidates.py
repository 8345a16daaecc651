"""Candidates and seed evals, by session and by candidate."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import Field

from prefect_mipro.models.base import JsonObject, Record, SessionId
from prefect_mipro.models.levers import Demonstration, LeverName
from prefect_mipro.models.sessions import Retire, RetiredCandidates
from prefect_mipro.server.routes.dependencies import (
    LARGEST_INTEGER,
    CandidateId,
    Cursor,
    Integer,
    Limit,
    Listing,
    SessionsOf,
    api_router,
)
from prefect_mipro.server.store.records import SeedEvalFilter

router = api_router("/api", tag="candidates")


class NewDemonstration(Record):
    """One worked example: what the user said, and what should have been answered."""

    input: str = Field(min_length=1)
    output: str = Field(min_length=1)


class NewCandidate(Record):
    """A candidate that a human adds. Without `demonstrations` it takes the champion's."""

    instruction: str
    demonstrations: list[NewDemonstration] | None = Field(default=None, max_length=200)
    label: str | None = Field(default=None, max_length=200)


@router.get("/systems/{session_id}/candidates")
async def candidates(
    session_id: SessionId,
    sessions: SessionsOf,
    status: str | None = None,
    sort: str | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Listing:
    """A session's candidates by number, or by `sort=objective:desc`."""
    page = await sessions.candidates(
        session_id, limit=limit, cursor=cursor, status=status, sort=sort
    )
    return Listing(items=list(page.items), next_cursor=page.next_cursor)


@router.post("/systems/{session_id}/candidates", status_code=201)
async def add_candidate(
    session_id: SessionId, candidate: NewCandidate, sessions: SessionsOf
) -> JsonObject:
    """Let a prompt of your own compete."""
    told = candidate.demonstrations
    return await sessions.add_candidate(
        session_id,
        instruction=candidate.instruction,
        demonstrations=None if told is None else [Demonstration(**dict(each)) for each in told],
        label=candidate.label,
    )


@router.get("/candidates/{candidate_id}")
async def candidate(candidate_id: CandidateId, sessions: SessionsOf) -> JsonObject:
    """One candidate."""
    return await sessions.candidate(candidate_id)


@router.post("/candidates/{candidate_id}/retire")
async def retire(
    candidate_id: CandidateId, wanted: Retire, sessions: SessionsOf
) -> RetiredCandidates:
    """Take a candidate out of play; the champion answers the rollouts that are pinned to it.

    The baseline cannot be retired. In the place of a champion comes the candidate in play that won
    a duel last, else the baseline. Promoting a retired candidate brings it back.
    """
    return await sessions.retire(candidate_id, reason=wanted.reason)


@router.post("/systems/{session_id}/levers/{lever}/{version}/retire")
async def retire_lever(
    session_id: SessionId,
    lever: LeverName,
    version: Annotated[int, Path(ge=1, le=LARGEST_INTEGER)],
    wanted: Retire,
    sessions: SessionsOf,
) -> RetiredCandidates:
    """Retire all candidates that hold a lever version; no new candidate is made with it."""
    return await sessions.retire_lever(session_id, lever, version, reason=wanted.reason)


@router.get("/systems/{session_id}/seed-evals")
async def seed_evals(
    session_id: SessionId,
    sessions: SessionsOf,
    candidate_id: CandidateId | None = None,
    split: str | None = None,
    seed: Integer | None = None,
    success: bool | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Listing:
    """A session's rewarded rollouts that named their seed."""
    wanted = SeedEvalFilter(
        session_id=session_id, candidate_id=candidate_id, seeds=_only(seed), success=success
    )
    return await _seed_evals(sessions, wanted, split=split, limit=limit, cursor=cursor)


@router.get("/candidates/{candidate_id}/seed-evals")
async def candidate_seed_evals(
    candidate_id: CandidateId,
    sessions: SessionsOf,
    split: str | None = None,
    seed: Integer | None = None,
    success: bool | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Listing:
    """A candidate's rewarded rollouts that named their seed."""
    wanted = SeedEvalFilter(candidate_id=candidate_id, seeds=_only(seed), success=success)
    return await _seed_evals(sessions, wanted, split=split, limit=limit, cursor=cursor)


async def _seed_evals(
    sessions: SessionsOf,
    wanted: SeedEvalFilter,
    *,
    split: str | None,
    limit: int,
    cursor: str | None,
) -> Listing:
    page = await sessions.seed_evals(wanted, split=split, limit=limit, cursor=cursor)
    items = [item.model_dump(mode="json") for item in page.items]
    return Listing(items=items, next_cursor=page.next_cursor)


def _only(seed: int | None) -> list[int] | None:
    return None if seed is None else [seed]
