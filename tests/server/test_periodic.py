"""Work that is done now and then: again after an error, and no more once it is closed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from prefect_mipro.errors import StoreFailed
from prefect_mipro.server.periodic import Periodic


async def test_it_begins_at_once_and_goes_on_after_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    enough = asyncio.Event()
    times = 0

    async def work() -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise StoreFailed("the disk is full")
        enough.set()

    periodic = Periodic("sweep", work, every_seconds=0)
    with caplog.at_level(logging.WARNING):
        periodic.begin()
        async with asyncio.timeout(20):
            await enough.wait()
        await periodic.close()
    assert [record.message for record in caplog.records] == ["periodic_work_failed"]
    after = times
    await asyncio.sleep(0)
    assert times == after
