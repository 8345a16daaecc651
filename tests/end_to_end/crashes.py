"""A server that is killed in the middle of its work, again and again, and what must be left.

Programs call it, reward their rollouts, reward some of them twice, and add candidates; they keep a
ledger of what they were told. The process gets a SIGKILL at a random moment, and then the file must
agree with the ledger, and each counter in it with the facts that it counts.
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from prefect_mipro.client.clients import Client
from prefect_mipro.models.sessions import CreateSession
from tests.end_to_end.conftest import CONFIG, BackendProcess, messages_of
from tests.fake_upstream import Body, FakeUpstream, better_with_demonstrations

SESSION_ID = "s"
PROGRAMS = 6
# A server lives for so many answers at most.
MOST_ANSWERS = 60
REPEATED_SHARE = 0.2
ADDED_SHARE = 0.03


@dataclass
class Ledger:
    """What programs were told, and what they have sent."""

    pins: dict[str, str] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    sent_rewards: set[str] = field(default_factory=set)
    candidates: set[str] = field(default_factory=set)
    kills: int = 0


class Crashes:
    """One database, and the servers that die on it."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.ledger = Ledger()
        self._file = folder / "mipro.db"
        self._random = random.Random(seed)
        self._numbers = count()

    @contextmanager
    def upstream(self) -> Iterator[None]:
        """The model's server, which outlives them all."""
        with FakeUpstream(_answer) as upstream:
            self._options: tuple[str, ...] = (
                *("--database-url", self.database_url),
                *("--upstream-url", upstream.url),
            )
            yield

    @property
    def database_url(self) -> str:
        return f"sqlite+aiosqlite:///{self._file}"

    def kill_one(self) -> None:
        """Start a server, let the programs run, and kill it at a random moment."""
        answers = threading.Semaphore(0)
        with (
            BackendProcess(*self._options) as backend,
            Client(backend.url) as client,
            httpx.Client(base_url=backend.url, timeout=20) as http,
            ThreadPoolExecutor(PROGRAMS) as programs,
        ):
            status = client.create_session(CreateSession(session_id=SESSION_ID, config_body=CONFIG))
            path = urlsplit(status.online_url).path
            running = [
                programs.submit(
                    self._program, random.Random(self._random.random()), path, http, answers
                )
                for _ in range(PROGRAMS)
            ]
            try:
                for _ in range(self._random.randint(1, MOST_ANSWERS)):
                    assert answers.acquire(timeout=60)
                self._before_the_kill(backend.url)
            finally:
                backend.kill()
            for program in running:
                program.result()
        self.ledger.kills += 1

    def violations(self) -> list[str]:
        """What is wrong with the file as the last server has left it."""
        with closing(sqlite3.connect(self._file)) as connection:
            connection.row_factory = sqlite3.Row
            return [*_lost(connection, self.ledger), *miscounted(connection)]

    def told_by_the_next_server(self) -> list[str]:
        """Where the status of a restarted server differs from a replay of the facts."""
        with BackendProcess(*self._options) as backend, Client(backend.url) as client:
            status = client.session_status(SESSION_ID)
        with closing(sqlite3.connect(self._file)) as connection:
            facts = dict(connection.execute(_REPLAY))
        told = {id_: report.reward_count for id_, report in status.candidates.items()}
        return _differences("status: rewards", told, {id_: facts.get(id_, 0) for id_ in told})

    def _before_the_kill(self, backend_url: str) -> None:
        """What else the server is to be in the middle of."""

    def _program(
        self, chance: random.Random, path: str, http: httpx.Client, answers: threading.Semaphore
    ) -> None:
        """Until the server is gone."""
        try:
            while True:
                rollout_id = f"r{next(self._numbers)}"
                answer = http.post(
                    f"{path}/{rollout_id}/chat/completions",
                    json={"model": "m", "messages": messages_of(f"{rollout_id} #a")},
                )
                if answer.status_code == 200:
                    self.ledger.pins[rollout_id] = answer.headers["x-mipro-candidate-id"]
                    answers.release()
                self._reward(http, rollout_id, chance)
                if chance.random() < ADDED_SHARE:
                    self._add_candidate(http, rollout_id)
        except httpx.HTTPError:
            return

    def _reward(self, http: httpx.Client, rollout_id: str, chance: random.Random) -> None:
        if chance.random() < REPEATED_SHARE and self.ledger.rewards:
            rollout_id = chance.choice([*self.ledger.rewards])
        score = _score(rollout_id)
        self.ledger.sent_rewards.add(rollout_id)
        receipt = http.post(
            f"/api/v1/online/sessions/{SESSION_ID}/reward",
            json={"rollout_id": rollout_id, "reward_info": {"score": score}, "shareable": True},
        )
        if receipt.status_code == 200:
            self.ledger.rewards[rollout_id] = score

    def _add_candidate(self, http: httpx.Client, rollout_id: str) -> None:
        added = http.post(
            f"/api/systems/{SESSION_ID}/candidates",
            json={"instruction": f"You classify banking queries for branch {rollout_id}."},
        )
        if added.status_code == 201:
            self.ledger.candidates.add(added.json()["candidate_id"])


def _answer(body: Body) -> str:
    asks_policy = "Query: " in body["messages"][-1]["content"][:20]
    return better_with_demonstrations(body) if asks_policy else "nothing"


def _score(rollout_id: str) -> float:
    return int(rollout_id[1:]) % 3 / 2


def _lost(connection: sqlite3.Connection, ledger: Ledger) -> Iterator[str]:
    """What programs were told and is not so, or is so and was never sent."""
    pins = dict(connection.execute("SELECT rollout_id, candidate_id FROM mipro_rollouts"))
    for rollout_id, candidate_id in [*ledger.pins.items()]:
        if pins.get(rollout_id) != candidate_id:
            yield f"pin of {rollout_id}: told {candidate_id}, found {pins.get(rollout_id)}"
    rewards = connection.execute("SELECT rollout_id, score FROM mipro_rewards").fetchall()
    for rollout_id, number in Counter(row["rollout_id"] for row in rewards).items():
        if number > 1 or rollout_id not in ledger.sent_rewards:
            yield f"reward of {rollout_id}: {number} times there"
    scores = {row["rollout_id"]: row["score"] for row in rewards}
    for rollout_id, score in [*ledger.rewards.items()]:
        if scores.get(rollout_id) != score:
            yield f"reward of {rollout_id}: told {score}, found {scores.get(rollout_id)}"
    known = {row[0] for row in connection.execute("SELECT candidate_id FROM mipro_candidates")}
    yield from (f"candidate {lost} is lost" for lost in ledger.candidates - known)


def miscounted(connection: sqlite3.Connection) -> Iterator[str]:
    """Counters that differ from what they count, numbers with gaps or twins."""
    for name, counted, facts in _COUNTED:
        yield from _differences(
            name, _rows(connection.execute(counted)), _rows(connection.execute(facts))
        )
    for name, query in _NUMBERED:
        numbers = [row[0] for row in connection.execute(query)]
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            yield f"{name}: {numbers}"
    versions = {
        (row["lever"], row["version"])
        for row in connection.execute("SELECT lever, version FROM mipro_lever_versions")
    }
    for row in connection.execute("SELECT * FROM mipro_candidates"):
        wanted = {
            ("instruction", row["instruction_version"]),
            ("demonstrations", row["demonstrations_version"]),
        }
        yield from (f"candidate {row['number']} lacks {lost}" for lost in wanted - versions)


def _rows(found: sqlite3.Cursor) -> dict[Any, Any]:
    return {row[0]: json.dumps([*row][1:]) for row in found}


def _differences(name: str, counted: Mapping[Any, Any], facts: Mapping[Any, Any]) -> list[str]:
    keys = [key for key in {**counted, **facts} if counted.get(key) != facts.get(key)]
    return [f"{name} of {key}: {counted.get(key)}, facts say {facts.get(key)}" for key in keys]


_REPLAY = "SELECT candidate_id, count(*) FROM mipro_rewards GROUP BY candidate_id"
# Scores are halves, so that sums are exact in any order.
_COUNTED = (
    (
        "rollouts and rewards of the session",
        "SELECT session_id, rollouts, rewards FROM mipro_sessions",
        "SELECT session_id, count(*), count(reward_number) FROM mipro_rollouts GROUP BY session_id",
    ),
    (
        "rollouts and rewards",
        "SELECT candidate_id, rollouts, rewards, reward_sum, reward_square_sum "
        "FROM mipro_candidates WHERE rollouts",
        "SELECT candidate_id, count(*), count(reward_number), total(reward), "
        "total(reward * reward) FROM mipro_rollouts GROUP BY candidate_id",
    ),
    (
        "rewards of rollouts",
        "SELECT rollout_id, reward FROM mipro_rollouts WHERE reward_number",
        "SELECT rollout_id, value FROM mipro_rewards WHERE candidate_id IS NOT NULL",
    ),
    (
        "calls and tokens",
        "SELECT candidate_id, calls, failed_calls, prompt_tokens, completion_tokens "
        "FROM mipro_candidates WHERE calls",
        "SELECT candidate_id, count(*), sum(status <> 200 OR error <> ''), sum(prompt_tokens), "
        "sum(completion_tokens) FROM mipro_traces GROUP BY candidate_id",
    ),
    (
        "answered calls",
        "SELECT rollout_id, answered_calls FROM mipro_rollouts WHERE answered_calls",
        "SELECT rollout_id, count(*) FROM mipro_traces WHERE status = 200 AND error = '' "
        "GROUP BY rollout_id",
    ),
    (
        "rewards in blocks",
        "SELECT candidate_id, sum(rewards), total(reward_sum) FROM mipro_reward_blocks "
        "GROUP BY candidate_id",
        "SELECT candidate_id, count(*), total(reward) FROM mipro_rollouts WHERE reward_number "
        "GROUP BY candidate_id",
    ),
)
_NUMBERED = (
    ("positions", "SELECT position FROM mipro_rollouts"),
    ("reward numbers", "SELECT reward_number FROM mipro_rollouts WHERE reward_number"),
    ("candidates", "SELECT number FROM mipro_candidates"),
    (
        "instructions",
        "SELECT version FROM mipro_lever_versions WHERE lever = 'instruction'",
    ),
    (
        "demonstrations",
        "SELECT version FROM mipro_lever_versions WHERE lever = 'demonstrations'",
    ),
    ("events", "SELECT seq FROM mipro_events"),
)
