"""The stores that must keep the contract. A new one, or a new database, is a line here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.interface import Store

DATABASE_URLS = {"sqlite": "sqlite+aiosqlite:///{file}"}


@pytest.fixture(params=DATABASE_URLS)
async def store(request: pytest.FixtureRequest, migrated_file: Path) -> AsyncIterator[Store]:
    opened = await open_store(DATABASE_URLS[request.param].format(file=migrated_file))
    yield opened
    await opened.close()
