"""The backend of the route tests, for each file anew."""

from __future__ import annotations

from tests.server.routes.conftest import _live, caller

__all__ = ["_live", "caller"]
