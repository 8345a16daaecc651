"""What is asked on every call, reward and status costs the same after millions of rewards."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from prefect_mipro.models.exports import Part
from prefect_mipro.models.levers import LeverName
from prefect_mipro.models.rollouts import RolloutOrder
from prefect_mipro.models.sessions import ForgetSubject
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.records import ForgetOrder, SeedEvalFilter, Texts
from prefect_mipro.server.store.store import Store
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


async def _second_page(store: Store, part: Part) -> None:
    session = await store.session("s1")
    page = await store.part(session, part, limit=1)
    await store.part(session, part, limit=1, cursor=page.next_cursor)


async def _all_traceable(store: Store) -> None:
    cursor = (await store.traceable("s1", limit=2)).next_cursor
    while cursor is not None:
        cursor = (await store.traceable("s1", limit=2, cursor=cursor)).next_cursor


ORDER = ForgetOrder("forget_1", "s1", ForgetSubject.EXAMPLE_ID, "1", requested_at=at(0))
QUESTIONS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "session": lambda store: store.session("s1"),
    "rollout": lambda store: store.rollout("s1", "r1"),
    "pin": lambda store: pin(store, rollout("r8", duel_number=1, predicted_reward=0.5)),
    "pin again": lambda store: pin(store, rollout("r1")),
    "record_call": lambda store: record(store, trace("t8")),
    "add_reward": lambda store: store.add_reward(reward("reward_8", "r2"), request_key="k"),
    "add_reward of a past epoch": lambda store: store.add_reward(reward("reward_7", "past")),
    "add_reward without ids": lambda store: store.add_reward(reward("reward_9", None)),
    "add_reward by correlation": lambda store: store.add_reward(
        reward("reward_9", None, correlation_id="c")
    ),
    "thin": lambda store: store.thin("s1", limit=2),
    "unmarked_demonstrations": lambda store: store.unmarked_demonstrations("s1", before=at(99)),
    "remove_old": lambda store: store.remove_old("s1", before=at(99), limit=2, at=at(99)),
    "remove_old calls": lambda store: store.remove_old("s1", before=at(0), limit=2, at=at(99)),
    "traceable": lambda store: _all_traceable(store),
    "call_texts": lambda store: store.call_texts("s1", ["r1"], limit=9, cursor=None),
    "remove_rollouts": lambda store: store.remove_rollouts(ORDER, ["r1"], at=at(9)),
    "remove_calls": lambda store: store.remove_calls(
        ORDER, ["r1"], [(LeverName.INSTRUCTION, 2)], limit=9, cursor=None
    ),
    "remove_events": lambda store: store.remove_events("s1", ["r1"], limit=9, cursor=None),
    "end_forgetting": lambda store: store.end_forgetting(ORDER, data={}, at=at(9)),
    "withdraw": lambda store: store.withdraw("s1", ["cand_2"], at=at(9), reason=""),
    "delete_session": lambda store: store.delete_session("s1"),
    **{
        f"forget_texts of {texts}": partial(
            lambda texts, store: store.forget_texts(texts, before=at(99), limit=2), texts
        )
        for texts in Texts
    },
    "candidates": lambda store: store.candidates("s1"),
    "candidate": lambda store: store.candidate(BASELINE),
    "levers": lambda store: store.levers("s1"),
    "totals": lambda store: store.totals("s1"),
    "learning_facts": lambda store: store.learning_facts("s1"),
    "example_rewards": lambda store: store.example_rewards("s1", "1"),
    "give_up": lambda store: store.give_up("s1", after_rewards=9, pinned_before=at(0), at=at(9)),
    "give_up of some": lambda store: store.give_up(
        "s1", after_rewards=9, pinned_before=at(1), at=at(9)
    ),
    "watermark": lambda store: store.watermark("s1"),
    "begin_epoch": lambda store: store.begin_epoch("s1", at=at(9), reason=""),
    "set_champion": lambda store: store.set_champion("s1", "cand_2", at=at(9), reason=""),
    "frames": lambda store: store.frames("s1", limit=9),
    "last_unapplied": lambda store: store.last_unapplied("s1"),
    "example_traces": lambda store: store.example_traces("s1", limit=9),
    "example_traces of a candidate": lambda store: store.example_traces(
        "s1", candidate_id=BASELINE, limit=9
    ),
    "newest rollout_reports": lambda store: store.rollout_reports(
        "s1", order=RolloutOrder.NEWEST, limit=9
    ),
    "traces_of": lambda store: store.traces_of("s1", "none"),
    "duel": lambda store: store.duel("s1"),
    "duel_observations": lambda store: store.duel_observations("s1", 1),
    "awaited_in_duel": lambda store: store.awaited_in_duel("s1", 1),
    "events": lambda store: store.events("s1", since=0, limit=9),
    "seed_evals of a session": lambda store: store.seed_evals(
        SeedEvalFilter(session_id="s1"), limit=9
    ),
    "seed_evals of a candidate": lambda store: store.seed_evals(
        SeedEvalFilter(candidate_id=BASELINE), limit=9
    ),
    "seed_evals of a seed": lambda store: store.seed_evals(
        SeedEvalFilter(session_id="s1", seeds=[7]), limit=9
    ),
    **{
        f"{part} of an export": partial(_second_page, part=part)
        for part in Part
        if part not in (Part.SESSION, Part.END)
    },
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_no_question_reads_a_whole_table_or_sorts_one(
    migrated_file: Path, question: str
) -> None:
    with _statements() as asked:
        store = await open_store(f"sqlite+aiosqlite:///{migrated_file}")
        await _fill(store)
        asked.clear()
        await QUESTIONS[question](store)
        await store.close()
    plans = _plans(migrated_file, asked)
    assert plans
    slow = [step for step in plans if "SCAN" in step or "USE TEMP B-TREE" in step]
    assert [step for step in slow if not _is_of_few(step)] == []


def _is_of_few(step: str) -> bool:
    """What was retired last is few, and found by an index; what is given is at hand."""
    few = ("SCAN retired_last", "SCAN newest", "SCAN given", "SCAN CONSTANT ROW")
    return step in few


async def _fill(store: Store) -> None:
    await create(store)
    await challenge(store)
    await pin(store, rollout("past", example_id="1"))
    await store.begin_epoch("s1", at=at(0), reason="another model")
    await store.open_duel(duel())
    for number in range(6):
        await pin(store, rollout(f"r{number}", correlation_id="c", example_id=str(number)))
    await record(store, trace(unapplied_reason="no system message"))
    await store.add_reward(reward())


@contextmanager
def _statements() -> Iterator[list[str]]:
    """What is asked of any SQLite database that is opened meanwhile, its parameters filled in."""
    asked: list[str] = []

    def note(connection: sqlite3.Connection, _: object) -> None:
        connection.set_trace_callback(asked.append)

    event.listen(Engine, "connect", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "connect", note)


def _plans(file: Path, asked: list[str]) -> list[str]:
    connection = sqlite3.connect(file)
    steps: list[str] = []
    for statement in asked:
        if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
            rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            steps += [row[-1] for row in rows]
    connection.close()
    return steps
