"""A session as a file: JSON lines, streamed out and taken in by pieces."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from fastapi.responses import StreamingResponse

from prefect_mipro.models.base import SessionId
from prefect_mipro.models.exports import ImportReceipt, ImportRequest
from prefect_mipro.server.routes.dependencies import (
    CallersWorkspace,
    ExportsOf,
    ImportsOf,
    SessionMakingRoute,
    api_router,
)
from prefect_mipro.server.routes.sessions import V1_PREFIX

MEDIA_TYPE = "application/x-ndjson"

router = api_router(V1_PREFIX, tag="sessions")


@router.get(
    "/{session_id}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {}}}},
)
async def export(
    session_id: SessionId,
    exports: ExportsOf,
    traces: Annotated[bool, Query(description="with what was asked and answered")] = True,
) -> StreamingResponse:
    """All that is known of a session, one line for each fact of it.

    A line is a lever version, a candidate, a rollout, a reward, a trace, and so on: `part` says
    which. The last one counts them; a file without it was cut off.
    """
    lines = await exports.lines(session_id, traces=traces)
    return StreamingResponse(lines, media_type=MEDIA_TYPE)


async def import_(
    session_id: SessionId,
    request: ImportRequest,
    imports: ImportsOf,
    workspace: CallersWorkspace,
) -> ImportReceipt:
    """Take consecutive lines of an export, in as many calls as it takes.

    The first line creates the session, the last one ends the import. A session that was running is
    paused here, so that two backends do not go on with it.
    """
    return await imports.take(session_id, request.lines, workspace=workspace)


router.add_api_route(
    "/{session_id}/import", import_, methods=["POST"], route_class_override=SessionMakingRoute
)
