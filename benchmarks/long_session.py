"""A session with as many rewards as are asked for, in an SQLite file, as the store would leave it.

Its candidates and its duel are made through the store; its rollouts, calls, rewards and events are
inserted in bulk into the store's own tables, and counted as the store counts them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    create_engine,
    insert,
    literal_column,
    select,
    text,
    update,
)

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate, Duel
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationsValue,
    InstructionValue,
    LeverName,
    LeverVersion,
)
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.server.store import schema
from prefect_mipro.server.store.blocks import Epoch
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.schema import microseconds

SESSION_ID = "long"
INSTRUCTIONS = 10
DEMONSTRATION_SETS = 5
CANDIDATES = INSTRUCTIONS * DEMONSTRATION_SETS
EXAMPLES = 500
# The newest rollouts: half of what a duel may have at most, by default.
DUEL_ROLLOUTS = 500
IN_FLIGHT = 16

SYSTEM_PROMPT = "You classify queries."
CONFIG: JsonObject = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": SYSTEM_PROMPT},
                {"role": "user", "order": 1, "pattern": "Query: {query}"},
            ]
        },
        "policy": {"model": "m"},
        # What the proposer does is not what a choice or a status costs.
        "mipro": {"mode": "online", "online_proposer_mode": "off"},
    }
}

_START = datetime(2026, 1, 1, tzinfo=UTC)

Sums = list[float]


def candidate_id(index: int) -> str:
    """Of the candidate with the number `index + 1`."""
    return f"cand_{index}"


async def make(file: Path, *, rewards: int, seed: int = 0) -> None:
    """Make the file. It must not be there yet."""
    await _create(file)
    engine = create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        for pragma in ("synchronous = OFF", "journal_mode = OFF", "cache_size = -200000"):
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        _fill(connection, Traffic.of(rewards, seed=seed))
        connection.commit()
    engine.dispose()


@dataclass(frozen=True, eq=False)
class Traffic:
    """The rollouts by position, the first at index 0; `values` of those that have a reward."""

    candidates: list[int]
    examples: list[int]
    values: list[float]

    @classmethod
    def of(cls, rewards: int, *, seed: int) -> Traffic:
        """Every candidate has its share all the time: so there are most blocks to read.

        Means differ by candidate and example; the two of the duel are alike, so that it goes on.
        """
        rng = np.random.default_rng(seed)
        rollouts = rewards + IN_FLIGHT
        candidates = rng.integers(CANDIDATES, size=rollouts)
        candidates[max(rewards - DUEL_ROLLOUTS, 0) :] %= 2
        means = rng.normal(0.6, 0.05, CANDIDATES)
        means[1] = means[0]
        examples = rng.integers(EXAMPLES, size=rollouts)
        chances = means[candidates] + rng.normal(0.0, 0.2, EXAMPLES)[examples]
        values = (rng.random(rewards) < chances[:rewards]).astype(np.float64)
        return cls(candidates.tolist(), examples.tolist(), values.tolist())


@dataclass
class Counts:
    """What the store counts when a reward is attached."""

    candidates: defaultdict[int, Sums] = field(default_factory=lambda: defaultdict(_zeros))
    examples: defaultdict[int, Sums] = field(default_factory=lambda: defaultdict(_zeros))
    blocks: defaultdict[tuple[int, int], Sums] = field(default_factory=lambda: defaultdict(_zeros))

    @classmethod
    def of(cls, traffic: Traffic) -> Counts:
        counts = cls()
        epoch = Epoch(1, len(traffic.candidates))
        rewarded = zip(traffic.candidates, traffic.examples, traffic.values, strict=False)
        for position, (candidate, example, value) in enumerate(rewarded, start=1):
            counts._add(candidate, example, value, block=epoch.block(position))
        return counts

    def _add(self, candidate: int, example: int, value: float, *, block: int) -> None:
        own = self.candidates[candidate]
        seen = self.examples[example]
        stretch = self.blocks[block, candidate]
        stretch[0] += 1
        stretch[1] += value
        stretch[2] += expected_deviation(int(seen[0]), seen[1])
        seen[0] += 1
        seen[1] += value - (own[1] + 1) / (own[0] + 2)
        own[0] += 1
        own[1] += value


def _zeros() -> Sums:
    return [0, 0.0, 0.0]


async def _create(file: Path) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{file}")
    session = Session(
        session_id=SESSION_ID,
        state=SessionState.RUNNING,
        config=CONFIG,
        proxy_secret="0" * 32,
        digest_key="1" * 32,
        baseline_id=candidate_id(0),
        champion_id=candidate_id(0),
        created_at=_START,
        updated_at=_START,
    )
    instructions = [_instruction(version) for version in range(1, INSTRUCTIONS + 1)]
    sets = [_demonstrations(version) for version in range(1, DEMONSTRATION_SETS + 1)]
    candidates = [_candidate(index) for index in range(CANDIDATES)]
    await store.create_session(session, [instructions[0], sets[0]], candidates[0])
    await store.add_candidates(SESSION_ID, [*instructions[1:], *sets[1:]], candidates[1:])
    await store.open_duel(
        Duel(
            session_id=SESSION_ID,
            number=1,
            champion_id=candidate_id(0),
            challenger_id=candidate_id(1),
            predicted_lift=0.05,
            started_at=_START,
        )
    )
    await store.close()


def _instruction(version: int) -> LeverVersion:
    words = SYSTEM_PROMPT if version == 1 else f"{SYSTEM_PROMPT} This is way {version}."
    value = InstructionValue(text=words)
    return LeverVersion(
        lever=LeverName.INSTRUCTION, version=version, value=value, created_at=_START
    )


def _demonstrations(version: int) -> LeverVersion:
    shown = tuple(
        Demonstration(input=f"Query: {version}.{number}", output=f"class {number}")
        for number in range(4 if version > 1 else 0)
    )
    value = DemonstrationsValue(demonstrations=shown)
    return LeverVersion(
        lever=LeverName.DEMONSTRATIONS, version=version, value=value, created_at=_START
    )


def _candidate(index: int) -> Candidate:
    return Candidate(
        candidate_id=candidate_id(index),
        session_id=SESSION_ID,
        number=index + 1,
        instruction_version=1 + index % INSTRUCTIONS,
        demonstrations_version=1 + index // INSTRUCTIONS,
        created_at=_START,
    )


def _fill(connection: Connection, traffic: Traffic) -> None:
    rewards = len(traffic.values)
    rollouts = len(traffic.candidates)
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE traffic "
        "(position INTEGER PRIMARY KEY, candidate TEXT, example TEXT, value DOUBLE)"
    )
    values = [*traffic.values, *[None] * IN_FLIGHT]
    connection.exec_driver_sql(
        "INSERT INTO traffic VALUES (?, ?, ?, ?)",
        [
            (position, candidate_id(candidate), str(example), value)
            for position, (candidate, example, value) in enumerate(
                zip(traffic.candidates, traffic.examples, values, strict=True), start=1
            )
        ],
    )
    _insert_facts(connection, duel_from=max(rewards - DUEL_ROLLOUTS, 0) + 1)
    _insert_counts(connection, Counts.of(traffic))
    newest = traffic.values[-DUEL_ROLLOUTS:]
    connection.execute(
        update(schema.duels).values(
            rollouts=len(newest) + IN_FLIGHT,
            rewards=len(newest),
            reward_sum=sum(newest),
            rollouts_before=rewards - len(newest),
        )
    )
    connection.execute(
        update(schema.sessions).values(
            rollouts=rollouts,
            rewards=rewards,
            version=schema.sessions.c.version + 2 * rewards,
            serving_candidate_id=candidate_id(traffic.candidates[-1]),
            serving_rollouts=1,
        )
    )


def _insert_facts(connection: Connection, *, duel_from: int) -> None:
    """One answered call, and but for the newest rollouts one reward, for each."""
    # Names sort as positions do, as names that hold the time would.
    name = "printf('%09d', position)"
    at = f"{microseconds(_START)} + position"
    rollout = {
        "session_id": f"'{SESSION_ID}'",
        "rollout_id": f"'r' || {name}",
        "candidate_id": "candidate",
    }
    rewarded = "value IS NOT NULL"
    _insert(
        connection,
        schema.rollouts,
        **rollout,
        example_id="example",
        seed="CAST(example AS INTEGER)",
        propensity="0.02",
        duel_number=f"CASE WHEN position >= {duel_from} THEN 1 END",
        predicted_reward=f"CASE WHEN position >= {duel_from} THEN 0.6 END",
        pinned_at=at,
        position="position",
        answered_calls="1",
        example_trace_id=f"'trace_' || {name}",
        reward_number=f"CASE WHEN {rewarded} THEN position END",
        reward="value",
    )
    _insert(
        connection,
        schema.traces,
        **rollout,
        trace_id=f"'trace_' || {name}",
        messages="""'[{"role":"user","content":"Query: ' || example || '"}]'""",
        response="""'{"choices":[{"message":{"role":"assistant","content":"class 1"}}]}'""",
        input="'Query: ' || example",
        output="'class 1'",
        unapplied_reason="''",
        status="200",
        error="''",
        latency_seconds="0.25",
        prompt_tokens="40",
        completion_tokens="4",
        estimated="0",
        created_at=at,
    )
    _insert(
        connection,
        schema.rewards,
        where=rewarded,
        **rollout,
        reward_id=f"'reward_' || {name}",
        score="value",
        value="value",
        received_at=at,
    )
    version = connection.scalar(select(schema.sessions.c.version))
    for number, kind in ((1, "mipro.reward.received"), (2, "mipro.rollout.complete")):
        _insert(
            connection,
            schema.events,
            where=rewarded,
            session_id=f"'{SESSION_ID}'",
            seq=f"{version} + 2 * (position - 1) + {number}",
            event_type=f"'{kind}'",
            message=f"'reward ' || value || ' for r' || {name}",
            data=f"""'{{"rollout_id":"r' || {name} || '"}}'""",
            created_at=at,
        )


def _insert(connection: Connection, table: Table, *, where: str = "1", **values: str) -> None:
    """A row for each rollout of the traffic; the values are SQL."""
    columns: list[ColumnElement[Any]] = [literal_column(sql) for sql in values.values()]
    rows = select(*columns).select_from(text("traffic")).where(text(where))
    connection.execute(insert(table).from_select(list(values), rows.order_by(text("position"))))


def _insert_counts(connection: Connection, counts: Counts) -> None:
    # Rewards are 0 or 1, so that the sum of their squares is their sum.
    query = "SELECT candidate, count(*) FROM traffic GROUP BY candidate"
    rollouts: dict[str, int] = dict(connection.exec_driver_sql(query).tuples().all())
    for index, (rewards, reward_sum, _) in counts.candidates.items():
        served = rollouts[candidate_id(index)]
        statistics: dict[str, Any] = {
            "rollouts": served,
            "rewards": rewards,
            "reward_sum": reward_sum,
            "reward_square_sum": reward_sum,
            "calls": served,
            "prompt_tokens": 40 * served,
            "completion_tokens": 4 * served,
            "latency_seconds_sum": 0.25 * served,
        }
        mine = schema.candidates.c.candidate_id == candidate_id(index)
        connection.execute(update(schema.candidates).where(mine).values(statistics))
    connection.execute(
        insert(schema.reward_blocks),
        [
            {
                "session_id": SESSION_ID,
                "epoch": 1,
                "block": block,
                "candidate_id": candidate_id(index),
                "rewards": rewards,
                "reward_sum": reward_sum,
                "reward_square_sum": reward_sum,
                "deviation_sum": deviation_sum,
            }
            for (block, index), (rewards, reward_sum, deviation_sum) in counts.blocks.items()
        ],
    )
    connection.execute(
        insert(schema.example_rewards),
        [
            {
                "session_id": SESSION_ID,
                "example_key": str(example),
                "rewards": rewards,
                "deviation_sum": deviation_sum,
            }
            for example, (rewards, deviation_sum, _) in counts.examples.items()
        ],
    )
