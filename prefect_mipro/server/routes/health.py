"""Whether the server is up, and whether it would answer calls."""

from __future__ import annotations

from fastapi import APIRouter, Request

from prefect_mipro import __version__
from prefect_mipro.models.readiness import Ready
from prefect_mipro.server.routes.dependencies import backend_of
from prefect_mipro.server.routes.errors import REFUSALS

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Answers as long as the server runs; needs no key."""
    return {"status": "ok", "version": __version__}


@router.get("/ready", responses={503: REFUSALS[503]})
async def ready(request: Request) -> Ready:
    """Answers 200 while calls would be answered, else 503 with what is amiss; needs no key.

    Looked at are the database and the connections to models' servers, every five seconds at most.
    """
    return await backend_of(request).readiness.check()
