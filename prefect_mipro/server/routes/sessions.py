"""The session resource, for both dialects of the wire: they differ in their prefix only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from prefect_mipro.models.base import ID_CHARACTERS, SessionId
from prefect_mipro.models.leases import TraceReceipt
from prefect_mipro.models.levers import ReviewState
from prefect_mipro.models.reviews import DemonstrationReview, ReviewRequest
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest, RolloutOrder
from prefect_mipro.models.sessions import (
    CreateSession,
    DeletedSession,
    Event,
    ForgetReport,
    ForgetRequest,
    NewEpoch,
    Promote,
    SessionState,
    SessionStatus,
    SessionUrls,
    StateChange,
)
from prefect_mipro.server.routes import leases
from prefect_mipro.server.routes.dependencies import (
    LARGEST_INTEGER,
    CallersWorkspace,
    CandidateId,
    Cursor,
    ForgettingOf,
    Integer,
    Limit,
    Listing,
    Moment,
    RemovalOf,
    RequestKey,
    ReviewsOf,
    RolloutsOf,
    SessionsOf,
    UrlsOf,
    api_router,
)
from prefect_mipro.server.store.records import SessionFilter

V1_PREFIX = "/api/v1/online/sessions"
PROMPT_LEARNING_PREFIX = "/api/prompt-learning/online/mipro/sessions"

FOUND: dict[int | str, dict[str, Any]] = {
    200: {"model": SessionStatus, "description": "There was one with this id already"}
}
COUNTED: dict[int | str, dict[str, Any]] = {
    200: {"model": TraceReceipt, "description": "A repeat: it was counted before"}
}


def session_router(prefix: str, *, tag: str) -> APIRouter:
    """The resource under a prefix."""
    router = api_router(prefix, tag=tag)
    router.add_api_route("", create, methods=["POST"], status_code=201, responses=FOUND)
    router.add_api_route("", find, methods=["GET"])
    router.add_api_route("/{session_id}", status, methods=["GET"])
    router.add_api_route("/{session_id}", change_state, methods=["PATCH"])
    router.add_api_route("/{session_id}", delete, methods=["DELETE"])
    router.add_api_route("/{session_id}/prompt", leases.prompt, methods=["GET"])
    router.add_api_route("/{session_id}/prompt", leases.lease, methods=["POST"])
    router.add_api_route(
        "/{session_id}/rollouts/{rollout_id}/traces",
        leases.post_trace,
        methods=["POST"],
        status_code=201,
        responses=COUNTED,
    )
    router.add_api_route("/{session_id}/reward", reward, methods=["POST"])
    router.add_api_route("/{session_id}/events", events, methods=["GET"])
    router.add_api_route("/{session_id}/examples", examples, methods=["GET"])
    router.add_api_route("/{session_id}/rollouts", rollouts, methods=["GET"])
    router.add_api_route("/{session_id}/traces", traces, methods=["GET"])
    router.add_api_route("/{session_id}/champion", promote, methods=["POST"])
    router.add_api_route("/{session_id}/reviews", reviews, methods=["GET"])
    router.add_api_route("/{session_id}/reviews/{version}", review, methods=["POST"])
    router.add_api_route("/{session_id}/forget", forget, methods=["POST"])
    router.add_api_route("/{session_id}/epoch", begin_epoch, methods=["POST"])
    router.add_api_route("/{session_id}/proxy-token", rotate_url, methods=["POST"])
    return router


async def create(
    request: CreateSession,
    sessions: SessionsOf,
    workspace: CallersWorkspace,
    response: Response,
) -> SessionStatus:
    """Create a session, or find the one with this id."""
    status, created = await sessions.create(request, workspace=workspace)
    response.status_code = 201 if created else 200
    return status


async def find(
    sessions: SessionsOf,
    workspace: CallersWorkspace,
    state: SessionState | None = None,
    kind: str | None = None,
    system_id: str | None = None,
    system_name: str | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Listing:
    """List sessions, newest first."""
    wanted = SessionFilter(
        state=state,
        kind=kind,
        system_id=system_id,
        system_name=system_name,
        workspace=workspace,
        created_after=created_after,
        created_before=created_before,
    )
    page = await sessions.find(wanted, limit=limit, cursor=cursor)
    return Listing(items=list(page.items), next_cursor=page.next_cursor)


async def status(session_id: SessionId, sessions: SessionsOf) -> SessionStatus:
    """All there is to know about a session."""
    return await sessions.status(session_id)


async def change_state(
    session_id: SessionId, change: StateChange, sessions: SessionsOf
) -> SessionStatus:
    """Pause, resume or cancel a session."""
    return await sessions.change_state(session_id, SessionState(change.state))


async def delete(session_id: SessionId, removal: RemovalOf) -> DeletedSession:
    """Delete a session in any state: all its rows, for good.

    Calls that are under way are answered, and nothing is kept of them. Other servers that share the
    database notice within a second. The id may be given to a new session.
    """
    return await removal.delete(session_id)


async def reward(
    session_id: SessionId,
    request: RewardRequest,
    rollouts: RolloutsOf,
    request_key: RequestKey = None,
) -> RewardReceipt:
    """Report what a rollout was worth."""
    return await rollouts.reward(session_id, request, request_key=request_key)


async def events(
    session_id: SessionId,
    sessions: SessionsOf,
    since_seq: Annotated[Integer, Query(description="show later ones only")] = 0,
    limit: Limit = 500,
) -> dict[str, list[Event]]:
    """What happened in a session, oldest first."""
    found = await sessions.events(session_id, since=since_seq, limit=limit)
    return {"events": list(found)}


async def examples(
    session_id: SessionId, candidate_id: CandidateId, sessions: SessionsOf, limit: Limit = 100
) -> Listing:
    """What a candidate answered in its newest rewarded rollouts of one call, newest first."""
    found = await sessions.examples(session_id, candidate_id, limit=limit)
    return Listing(items=[each.model_dump(mode="json") for each in found])


async def rollouts(
    session_id: SessionId,
    service: RolloutsOf,
    order: RolloutOrder = RolloutOrder.NEWEST,
    limit: Limit = 100,
) -> Listing:
    """Rewarded rollouts, the newest reward first, or the worst of the newest 2,000."""
    found = await service.reports(session_id, order=order, limit=limit)
    return Listing(items=[each.model_dump(mode="json") for each in found])


async def traces(
    session_id: SessionId,
    of: Annotated[
        str,
        Query(min_length=1, max_length=ID_CHARACTERS, description="a rollout's id, or a call's"),
    ],
    service: RolloutsOf,
) -> Listing:
    """The calls of a rollout in their order, or one call: what was sent, and what was answered."""
    found = await service.traces(session_id, of)
    return Listing(items=[each.model_dump(mode="json") for each in found])


async def promote(session_id: SessionId, wanted: Promote, sessions: SessionsOf) -> SessionStatus:
    """Make a candidate the champion, without a duel: also the way back to an earlier one."""
    return await sessions.promote(session_id, wanted.candidate_id, reason=wanted.reason)


async def reviews(
    session_id: SessionId, service: ReviewsOf, state: ReviewState = ReviewState.WAITING
) -> Listing:
    """The demonstration sets that wait for a person, or those approved or declined, oldest first.

    Sets wait in sessions with `demonstrations.from_traffic = "reviewed"`.
    """
    found = await service.find(session_id, state)
    return Listing(items=[each.model_dump(mode="json") for each in found])


async def review(
    session_id: SessionId,
    version: Annotated[int, Path(ge=1, le=LARGEST_INTEGER)],
    wanted: ReviewRequest,
    service: ReviewsOf,
) -> DemonstrationReview:
    """Approve a demonstration set, whole or without some of its demonstrations, or decline it.

    An approved set competes, with the champion's instruction, as a new candidate.
    """
    return await service.decide(session_id, version, wanted)


async def forget(
    session_id: SessionId, wanted: ForgetRequest, forgetting: ForgettingOf
) -> ForgetReport:
    """Remove all of one rollout, example, correlation id or end user, in any state of the session.

    Rollouts, calls, rewards and their events go, and lever versions that show a text of theirs are
    emptied: their candidates are retired, and the champion answers the rollouts that are pinned to
    them. Counters stay. With `dry_run` the answer says what would go.
    """
    return await forgetting.forget(session_id, wanted)


async def begin_epoch(
    session_id: SessionId, epoch: NewEpoch, sessions: SessionsOf
) -> SessionStatus:
    """Learn anew with the same candidates, because the model or the traffic has changed."""
    return await sessions.begin_epoch(session_id, reason=epoch.reason)


async def rotate_url(session_id: SessionId, urls: UrlsOf) -> SessionUrls:
    """Give the session's URLs a new secret, because the present one has leaked.

    Calls through the earlier URLs are refused from now on; on other servers that share the database
    within a second.
    """
    return await urls.rotate(session_id)
