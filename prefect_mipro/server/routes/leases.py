"""What a program needs that calls its model itself: a lease of its prompt, and a place for traces.

The same path without a rollout id is the wire's older question where the proxy is.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import RolloutId, SessionId
from prefect_mipro.models.leases import Lease, LeaseRequest, TraceReceipt, TraceRequest
from prefect_mipro.models.names import identifier, rollout_identifier, short_text
from prefect_mipro.models.sessions import SessionUrls
from prefect_mipro.server.routes.dependencies import (
    LeasesOf,
    RequestKey,
    SessionsOf,
)


async def prompt(
    session_id: SessionId,
    sessions: SessionsOf,
    leases: LeasesOf,
    rollout_id: Annotated[
        str | None, Query(description="Lease this rollout's candidate", examples=["ticket-4711"])
    ] = None,
    render: Annotated[
        bool, Query(description="Put the messages in, with the placeholders as they are")
    ] = False,
    example_id: Annotated[
        str | None, Query(description="Your name for the example that the rollout is about")
    ] = None,
    correlation_id: Annotated[
        str | None, Query(description="Kept with the rollout; rewards may name it")
    ] = None,
    candidate_id: Annotated[
        str | None, Query(description="This candidate, outside of learning: nothing is pinned")
    ] = None,
) -> Lease | SessionUrls:
    """Where the session's proxy is and, with a rollout id, what that rollout runs with.

    The first lease or call of a rollout chooses its candidate; each later one, through the proxy
    too, gets the same. Post the rollout's calls to `.../rollouts/{rollout_id}/traces` afterwards.
    To have the placeholders filled, send a POST.
    """
    if not rollout_id:
        if render:
            raise InputInvalid("render=true wants a rollout_id: candidates are chosen by rollout")
        return await sessions.urls(session_id)
    return await leases.lease(
        session_id,
        rollout_id=rollout_identifier(rollout_id),
        example_id=short_text("the example id", example_id) if example_id else None,
        correlation_id=short_text("the correlation id", correlation_id) if correlation_id else None,
        candidate_id=identifier("the candidate id", candidate_id) if candidate_id else None,
        render=render,
    )


async def lease(session_id: SessionId, request: LeaseRequest, leases: LeasesOf) -> Lease:
    """Lease a rollout's candidate, and have its prompt made of your inputs or messages.

    `inputs` fill the placeholders of the session's prompt. `messages` are your program's own, as
    it would send them to the proxy; what cannot be recognised in them stays, and
    `unapplied_reason` then says why.
    """
    return await leases.rendered(session_id, request)


async def post_trace(
    session_id: SessionId,
    rollout_id: RolloutId,
    request: TraceRequest,
    leases: LeasesOf,
    response: Response,
    request_key: RequestKey = None,
) -> TraceReceipt:
    """Post a call that a leased rollout made itself. It counts as one through the proxy does.

    A repeat with the same `trace_id`, else the same `Idempotency-Key`, is answered with 200 and
    counts no more; another trace under an id that is taken is a 409.
    """
    receipt = await leases.post_trace(session_id, rollout_id, request, request_key=request_key)
    response.status_code = 200 if receipt.duplicate else 201
    return receipt
