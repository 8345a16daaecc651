"""Whether a backend would answer calls."""

from __future__ import annotations

from typing import Literal

from prefect_mipro.models.base import Record


class Ready(Record):
    """Answer of a backend of which each part is in order: `parts` has "ok" for each."""

    status: Literal["ready"] = "ready"
    parts: dict[str, str]
