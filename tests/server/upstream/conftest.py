"""A model's server for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.scripted_upstream import ScriptedUpstream


@pytest.fixture
def server() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server
