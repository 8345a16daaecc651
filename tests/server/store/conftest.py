"""SQLite files, and stores on them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store


@pytest.fixture
def database_file(tmp_path: Path) -> Path:
    """Where a database may be made."""
    return tmp_path / "mipro.db"


@pytest.fixture
def migrated_file(template_file: Path, database_file: Path) -> Path:
    """A database with the newest schema and nothing in it."""
    shutil.copyfile(template_file, database_file)
    return database_file


@pytest.fixture
async def file_store(migrated_file: Path) -> AsyncIterator[Store]:
    store = await open_store(f"sqlite+aiosqlite:///{migrated_file}")
    yield store
    await store.close()
