"""Retention: sweeps that go on where the last one ended, beside the calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from prefect_mipro.models.exports import Part
from prefect_mipro.models.levers import Demonstration, DemonstrationSource, DemonstrationsValue
from prefect_mipro.server.services.privacy import PIECE, Retention
from prefect_mipro.server.services.session_cache import PromptCache, SessionCache
from prefect_mipro.server.store.engine import inspected, open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.store.upkeep import FREE_PAGES_KEPT
from tests.server.store.records import (
    at,
    candidate,
    create,
    demonstrations,
    pin,
    reward,
    rollout,
    trace,
)

DAY = 86_400


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path}/mipro.db")
    await create(opened)
    await pin(opened, rollout())
    yield opened
    await opened.close()


async def call_on(store: Store, *days: float) -> None:
    """A call at each of these times."""
    calls = [
        CallRecord(
            trace(f"trace_{day}_{number}", created_at=at(day * DAY)),
        )
        for number, day in enumerate(days)
    ]
    await store.record_calls(calls)


class Present:
    """A clock that moves when told."""

    day = 0.0

    def __call__(self) -> datetime:
        return at(self.day * DAY)


def retention(store: Store, present: Present, **days: float) -> Retention:
    live = SessionCache(store, PromptCache(store))
    kept = days or {"traces_days": 30}
    return Retention(store, live, **kept, clock=present, pause_seconds=0)


async def test_each_text_goes_when_its_time_is_up(store: Store) -> None:
    present = Present()
    sweeps = retention(store, present)
    await call_on(store, 0, 1, 2)
    await store.add_reward(reward(feedback="well said", received_at=at(DAY)))
    found = []
    for day in (30, 30.5, 31.5, 31.5, 99):
        present.day = day
        found.append(await sweeps.sweep())
    assert found == [0, 1, 2, 0, 1]


async def test_what_comes_after_a_sweep_is_found_by_the_next(store: Store) -> None:
    present = Present()
    sweeps = retention(store, present)
    present.day = 40
    await call_on(store, 1)
    assert await sweeps.sweep() == 1
    # Later calls that say an earlier time: an import brings those.
    await call_on(store, 2, 3)
    assert await sweeps.sweep() == 2


async def test_more_than_a_piece_is_swept_at_once(store: Store) -> None:
    present = Present()
    present.day = 40
    await call_on(store, *[1] * (2 * PIECE + 1))
    assert await retention(store, present).sweep() == 2 * PIECE + 1


async def test_rows_go_with_all_that_hangs_on_them_and_texts_may_go_before(
    store: Store,
) -> None:
    present = Present()
    sweeps = retention(store, present, traces_days=30, rollouts_days=90)
    await call_on(store, 0)
    await store.add_reward(reward(feedback="well said"))
    present.day = 31
    assert await sweeps.sweep() == 2  # a trace and a reward without their words
    assert await store.rollout("s1", "r1")
    present.day = 91
    # A rollout, a call, and the events of its reward; the session's own came at its beginning.
    assert await sweeps.sweep() == 1 + 1 + 3
    assert await store.rollout("s1", "r1") is None
    assert await sweeps.sweep() == 0
    assert (await store.session("s1")).removed_rollouts == 1


async def test_a_rollout_that_was_removed_is_pinned_anew(store: Store) -> None:
    live = SessionCache(store, PromptCache(store))
    session = await store.session("s1")
    present = Present()
    present.day = 91
    sweeps = Retention(store, live, rollouts_days=90, clock=present, pause_seconds=0)
    live.remember_pin(session, "r1", "baseline_1")
    live.remember_pin(session, "r2", "baseline_1")
    await sweeps.sweep()
    assert live.pinned(session, "r1") is None
    assert live.pinned(session, "r2") == "baseline_1"


async def test_old_sets_that_show_traffic_are_emptied_and_marked_ones_stay(
    store: Store,
) -> None:
    texts = {DemonstrationSource.TRAFFIC: "a stranger's words", DemonstrationSource.MARKED: "ours"}
    for number, (source, text) in enumerate(texts.items(), start=2):
        shown = Demonstration(input=text, output="billing", source=source)
        version = demonstrations(number).model_copy(
            update={"value": DemonstrationsValue(demonstrations=(shown,))}
        )
        made = candidate(number, instruction_version=1, demonstrations_version=number)
        await store.add_candidates("s1", [version], [made])
    await store.set_champion("s1", "cand_2", at=at(1), reason="")
    present = Present()
    sweeps = retention(store, present, rollouts_days=90)
    for present.day, champion in ((89, "cand_2"), (91, "baseline_1"), (92, "baseline_1")):
        await sweeps.sweep()
        assert (await store.session("s1")).champion_id == champion
    kept = [version.demonstrations for version in await store.levers("s1")]
    assert [[shown.input for shown in each] for each in kept if each] == [["ours"]]
    active = [each.candidate_id for each in await store.candidates("s1") if each.active]
    assert active == ["baseline_1", "cand_3"]


async def test_a_session_under_import_is_left_alone(store: Store, tmp_path: Path) -> None:
    source = await open_store(f"sqlite+aiosqlite:///{tmp_path}/source.db")
    await create(source, "other")
    (row,) = (await source.part(await source.session("other"), Part.SESSION, limit=1)).items
    await source.close()
    await store.restore(
        "other", Part.SESSION, [row], workspace="default", secret="", digest_key="", at=at(0)
    )
    present = Present()
    present.day = 91
    assert await retention(store, present, rollouts_days=90).sweep()


async def test_the_space_goes_back_to_the_disk(store: Store, tmp_path: Path) -> None:
    present = Present()
    large = 8 * FREE_PAGES_KEPT
    await store.record_calls(
        [
            CallRecord(
                trace("trace_1", messages=({"role": "user", "content": "long " * 800 * large},)),
            )
        ]
    )
    before = await size_of(store, tmp_path)
    present.day = 91
    await retention(store, present, rollouts_days=90).sweep()
    assert await size_of(store, tmp_path) < before / 4


async def size_of(store: Store, folder: Path) -> int:
    """The pages of the database, once all is written."""
    await store.session("s1")
    async with inspected(f"sqlite+aiosqlite:///{folder}/mipro.db") as database:
        return await database.read(pages)


def pages(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
