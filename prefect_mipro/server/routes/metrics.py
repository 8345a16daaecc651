"""What Prometheus scrapes."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from prefect_mipro.errors import KeyRejected
from prefect_mipro.models.keys import DEFAULT_WORKSPACE
from prefect_mipro.server.routes.dependencies import backend_of, callers_workspace
from prefect_mipro.server.routes.errors import REFUSALS

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, 401: REFUSALS[401]},
)
async def metrics(request: Request) -> Response:
    """Counts for Prometheus, of all workspaces together.

    Asks for a key of the workspace `default`, unless the server shows them to all.
    """
    backend = backend_of(request)
    if not backend.public_metrics and await callers_workspace(request) != DEFAULT_WORKSPACE:
        raise KeyRejected(
            "/metrics counts the calls of all workspaces; "
            f"send a key of the workspace {DEFAULT_WORKSPACE!r}"
        )
    await backend.telemetry.meters.refresh()
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    # Not on the event loop: writing the text takes milliseconds, and calls would wait.
    body = await asyncio.to_thread(encode, backend.telemetry.meters.registry)
    return Response(body, media_type=content_type)
