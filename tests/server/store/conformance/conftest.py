"""The stores that must keep the contract. A new one, or a new database, is a line here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store


@pytest.fixture
def sqlite_url(migrated_file: Path) -> str:
    return f"sqlite+aiosqlite:///{migrated_file}"


@pytest.fixture(params=["sqlite_url", "postgres_url"], ids=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    opened = await open_store(database_url)
    yield opened
    await opened.close()
