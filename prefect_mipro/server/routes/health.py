"""Whether the server is up."""

from __future__ import annotations

from fastapi import APIRouter

from prefect_mipro import __version__

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Answers as long as the server runs; needs no key."""
    return {"status": "ok", "version": __version__}
