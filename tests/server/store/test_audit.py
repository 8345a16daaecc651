"""The audit: a database that was lived in has no fault, and each fault is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import DuelState
from prefect_mipro.models.exports import Part
from prefect_mipro.server.store.audit import MOST_PROBLEMS, audit
from prefect_mipro.server.store.engine import inspected, open_store
from prefect_mipro.server.store.records import Texts
from prefect_mipro.server.store.store import Store
from tests.server.store.conformance.test_parts import fill
from tests.server.store.conformance.test_retention import swept
from tests.server.store.records import (
    BASELINE,
    at,
    challenge,
    create,
    duel,
    pin,
    record,
    reward,
    rollout,
    trace,
)

FAULTS = {
    "calls have their rollouts": "UPDATE mipro_traces SET rollout_id = 'gone'",
    "rollouts have their candidates": "UPDATE mipro_rollouts SET candidate_id = 'gone'",
    "candidates have their levers": "UPDATE mipro_candidates SET instruction_version = 99",
    "sessions have their champions": "UPDATE mipro_sessions SET champion_id = 'gone'",
    "counters of sessions": "UPDATE mipro_sessions SET rewards = rewards + 1",
    "counters of candidates": "UPDATE mipro_candidates SET reward_sum = reward_sum + 0.5",
    "counters of calls": "UPDATE mipro_candidates SET prompt_tokens = prompt_tokens + 1",
    "rewards of rollouts": "UPDATE mipro_rewards SET value = value + 0.25",
    "numbers of lever versions": "DELETE FROM mipro_lever_versions WHERE version = 1",
    "numbers of candidates": "UPDATE mipro_candidates SET number = number + 1 WHERE number > 1",
    "numbers of events": "DELETE FROM mipro_events WHERE seq = 2",
}


@pytest.fixture(params=["file", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "postgresql":
        served: str = request.getfixturevalue("postgres_url")
        return served
    file: Path = request.getfixturevalue("migrated_file")
    return f"sqlite+aiosqlite:///{file}"


async def faults(url: str) -> dict[str, tuple[str, ...]]:
    """The checks that found something, and what."""
    async with inspected(url) as database:
        checks = await database.read(audit)
    return {check.name: check.problems for check in checks if check.problems}


async def spoil(url: str, statement: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text(statement))


async def live(store: Store) -> None:
    """A session with a bit of everything, and one that has just been created."""
    await create(store)
    await create(store, "s2")
    await challenge(store, 2)
    await challenge(store, 3)
    await store.open_duel(duel())
    await store.add_reward(reward("reward_waiting", "r9", 0.75))
    for number in range(1, 67):
        await pin(store, served(number))
    await record(store, trace())
    for number in (4, 1, 2, 66, 3, 33, 34, 32):
        await store.add_reward(reward(f"reward_{number}", f"r{number}", number % 5 / 4))
    await store.close_duel("s1", 1, DuelState.WON, at=at(66), reason="e-value 25")
    await pin(store, served(67))
    await store.open_duel(duel(2, "cand_3", champion_id="cand_2"))
    await store.retire("s1", ["cand_3"], at=at(68), reason="behind")


async def live_on(store: Store) -> None:
    """What comes after that, and leans on it."""
    for number in range(68, 140):
        await pin(store, served(number))
    for number in (5, 139, 34, 67, 64, 63):
        await store.add_reward(reward(f"late_{number}", f"r{number}", number % 5 / 4))
    await store.give_up("s1", after_rewards=4, pinned_before=at(12), at=at(140))
    await store.add_reward(reward("late_10", "r10", 0.5))
    await store.begin_epoch("s1", at=at(141), reason="another model")
    await pin(store, served(140))
    for number in (140, 6):
        await store.add_reward(reward(f"late_{number}", f"r{number}", number % 5 / 4))
    await store.set_champion("s1", "cand_3", at=at(142), reason="asked")


def served(number: int) -> Any:
    """By turns for each candidate, of some example; of the duel if for the first two."""
    candidate_id = (BASELINE, "cand_2", "cand_3")[number % 3]
    dueled = candidate_id != "cand_3" and number <= 66
    return rollout(
        f"r{number}",
        candidate_id,
        example_id=None if number % 4 == 0 else str(number // 2 % 3),
        duel_number=1 if dueled else None,
        predicted_reward=0.5 if dueled else None,
        pinned_at=at(number),
    )


async def test_a_database_that_was_lived_in_has_no_fault(url: str) -> None:
    store = await open_store(url)
    await live(store)
    await live_on(store)
    for texts in Texts:
        await swept(store, texts, before=70)
    # Also while it is open.
    assert await faults(url) == {}
    await store.delete_session("s1")
    await store.close()
    assert await faults(url) == {}


async def test_an_import_is_no_fault_while_it_lasts_and_when_calls_were_left_behind(
    url: str, tmp_path: Path
) -> None:
    source = await open_store(f"sqlite+aiosqlite:///{tmp_path}/source.db")
    session = await fill(source)
    told: dict[Part, tuple[JsonObject, ...]] = {
        part: (await source.part(session, part, limit=100)).items
        for part in Part
        if part is not Part.END
    }
    await source.close()
    told[Part.TRACE] = ()
    lines = {str(part): len(rows) for part, rows in told.items()}
    store = await open_store(url)
    told[Part.END] = ({"lines": lines},)
    for part, rows in told.items():
        assert await faults(url) == {}
        await store.restore(
            "s1",
            part,
            rows,
            workspace="default",
            secret="0" * 32,
            digest_key="1" * 32,
            at=at(99),
        )
    await store.close()
    assert await faults(url) == {}


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_is_found_under_its_name(migrated_file: Path, name: str) -> None:
    url = f"sqlite+aiosqlite:///{migrated_file}"
    store = await open_store(url)
    await fill(store)
    await store.close()
    assert await faults(url) == {}
    await spoil(url, FAULTS[name])
    assert name in await faults(url)


async def test_of_many_faults_some_are_told(migrated_file: Path) -> None:
    url = f"sqlite+aiosqlite:///{migrated_file}"
    store = await open_store(url)
    for number in range(MOST_PROBLEMS + 5):
        await create(store, f"many{number}")
    await store.close()
    await spoil(url, FAULTS["counters of sessions"])
    assert len((await faults(url))["counters of sessions"]) == MOST_PROBLEMS


async def test_a_reference_to_nothing_is_found_in_a_file(migrated_file: Path) -> None:
    url = f"sqlite+aiosqlite:///{migrated_file}"
    store = await open_store(url)
    await create(store)
    await store.close()
    await spoil(url, "DELETE FROM mipro_sessions")  # by a program that does not heed them
    found = await faults(url)
    assert "refers to a row of mipro_sessions that is not there" in found["references"][0]
