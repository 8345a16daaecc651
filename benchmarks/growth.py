"""What rollouts cost on disk, and what comes back when they are removed.

    python -m benchmarks.growth                        # 100,000 rollouts, some 20 minutes
    python -m benchmarks.growth --postgres
    python -m benchmarks.growth --rollouts 2000        # to try it out

A server answers and rewards one rollout with a question and an answer of 1 KB each. What it has
left in the database is then written through the store as many times as rollouts are asked for, with
ids, times and words of their own, over a hundred days. Then the texts of all are emptied, nine in
ten are removed as `--rollout-retention-days` does it, and the file is compacted. After each step
the size of the database is told, with its indexes, and that `db check` finds no fault.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import Connection

from prefect_mipro.client.clients import Client
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.exports import Part
from prefect_mipro.models.rollouts import Reward, RewardRequest, Rollout, Trace
from prefect_mipro.models.sessions import CreateSession
from prefect_mipro.server.ids import new_id
from prefect_mipro.server.services.privacy import Retention
from prefect_mipro.server.services.session_cache import PromptCache, SessionCache
from prefect_mipro.server.settings import with_driver
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import compact, existing_file, inspected, open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store
from tests.end_to_end.conftest import CONFIG, BackendProcess
from tests.fake_upstream import FakeUpstream
from tests.postgres import Postgres

SESSION_ID = "growing"
DAYS = 100
KEPT_DAYS = 10
AT_ONCE = 64
TEXT_CHARACTERS = 1_000
TEXT_WORDS = TEXT_CHARACTERS // 5
VOCABULARY = 5_000
CONTENTS = ("full", "off")


@dataclass(frozen=True)
class Template:
    """What one rewarded rollout has left."""

    trace: Trace
    call: CallRecord
    reward: Mapping[str, Any]


class Words:
    """Text that does not compress better than text does."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._known = [
            "".join(chance.choices("etaoinshrdlucmfw", k=chance.randint(2, 9)))
            for _ in range(VOCABULARY)
        ]

    def some(self) -> str:
        return " ".join(self._chance.choices(self._known, k=TEXT_WORDS))[:TEXT_CHARACTERS]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL of its own")
    parser.add_argument("--content", choices=CONTENTS, help="one --trace-content instead of all")
    options = parser.parse_args(arguments)
    for content in (options.content,) if options.content else CONTENTS:
        with database(postgres=options.postgres) as url:
            asyncio.run(measure(url, content, rollouts=options.rollouts))
    return 0


@contextmanager
def database(*, postgres: bool) -> Iterator[str]:
    if postgres:
        with Postgres() as server:
            yield server.url()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield with_driver(f"sqlite:///{folder}/mipro.db")


async def measure(url: str, content: str, *, rollouts: int) -> None:
    words = Words(random.Random(0))
    await asyncio.to_thread(serve_one, url, content, words)
    step = Steps(url, content, rollouts)
    store = await open_store(url)
    template = await template_of(store)
    await grow(store, template, words, rollouts=rollouts)
    await store.close()
    await step.told(f"{rollouts:,} rollouts")
    await sweep(url, traces_days=0.001)
    await step.told("their texts emptied")
    await sweep(url, rollouts_days=KEPT_DAYS)
    await step.told(f"all but those of {KEPT_DAYS} days removed")
    await asyncio.to_thread(compact_database, url)
    await step.told("compacted")


def serve_one(url: str, content: str, words: Words) -> None:
    """One call and its reward, by a server."""
    with (
        FakeUpstream(lambda _: words.some()) as upstream,
        BackendProcess(
            *("--database-url", url, "--upstream-url", upstream.url, "--trace-content", content)
        ) as backend,
        Client(backend.url) as client,
    ):
        status = client.create_session(CreateSession(session_id=SESSION_ID, config_body=CONFIG))
        messages = [
            *({"role": "system", "content": "You classify banking queries."},),
            {"role": "user", "content": f"Query: {words.some()}"},
        ]
        path = f"{backend.url}{urlsplit(status.online_url).path}/first/chat/completions"
        httpx.post(path, json={"model": "m", "messages": messages}, timeout=60).raise_for_status()
        info = {"score": 1.0, "feedback": "right"}
        client.reward(SESSION_ID, RewardRequest(rollout_id="first", reward_info=info))


async def template_of(store: Store) -> Template:
    session = await store.session(SESSION_ID)
    (row,) = (await store.part(session, Part.TRACE, limit=9)).items
    (reward,) = (await store.part(session, Part.REWARD, limit=9)).items
    trace = Trace.model_validate(
        {
            **{name: row[name] for name in Trace.model_fields if name in row},
            "session_id": SESSION_ID,
            "usage": Usage(
                prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]
            ),
        }
    )
    call = CallRecord(trace, applied=True)
    return Template(trace, call, reward)


async def grow(store: Store, template: Template, words: Words, *, rollouts: int) -> None:
    """Write the rows that this number of rollouts leaves."""
    began = datetime.now(UTC) - timedelta(days=DAYS)
    apart = timedelta(days=DAYS) / rollouts
    for first in range(0, rollouts, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, rollouts))
        made = [(new_id("rollout"), began + apart * number) for number in numbers]
        candidate_id = template.trace.candidate_id
        await store.pin(
            [
                Rollout(
                    session_id=SESSION_ID,
                    rollout_id=rollout_id,
                    candidate_id=candidate_id,
                    example_id=str(number % 500),
                    propensity=0.5,
                    pinned_at=at,
                )
                for number, (rollout_id, at) in zip(numbers, made, strict=True)
            ]
        )
        await store.record_calls(
            [called(template, words, rollout_id, at) for rollout_id, at in made]
        )
        await asyncio.gather(
            *(store.add_reward(rewarded(template, rollout_id, at)) for rollout_id, at in made)
        )


def called(template: Template, words: Words, rollout_id: str, at: datetime) -> CallRecord:
    trace = template.trace
    trace_id = new_id("trace")
    texts: dict[str, Any] = {}
    if trace.output:  # it is kept
        asked, answered = words.some(), words.some()
        *before, last = trace.messages
        choice = {"message": {"role": "assistant", "content": answered}, "finish_reason": "stop"}
        texts = {
            "messages": (*before, {**last, "content": f"Query: {asked}"}),
            "response": {**(trace.response or {}), "choices": [{"index": 0, **choice}]},
            "input": asked,
            "output": answered,
        }
    own = {"trace_id": trace_id, "rollout_id": rollout_id, "created_at": at, **texts}
    return replace(template.call, trace=trace.model_copy(update=own))


def rewarded(template: Template, rollout_id: str, at: datetime) -> Reward:
    own = {"reward_id": new_id("reward"), "rollout_id": rollout_id, "candidate_id": None}
    told = {**template.reward, "session_id": SESSION_ID, "received_at": at, **own}
    return Reward.model_validate({name: told[name] for name in Reward.model_fields if name in told})


async def sweep(url: str, **days: float) -> None:
    """What a server sweeps, at once and without its pauses."""
    store = await open_store(url)
    live = SessionCache(store, PromptCache(store))
    await Retention(store, live, **days, clock=lambda: datetime.now(UTC), pause_seconds=0).sweep()
    await store.close()


async def faults_of(url: str) -> list[str]:
    """The names of the checks of `db check` that find a problem."""
    async with inspected(url) as database:
        return [check.name for check in await database.read(audit) if check.problems]


def compact_database(url: str) -> None:
    if url.startswith("sqlite"):
        compact(url)


@dataclass
class Steps:
    """The lines of the table, and how long each step took."""

    url: str
    content: str
    rollouts: int
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    async def told(self, what: str) -> None:
        seconds = time.monotonic() - self.began
        size_bytes = await self._size_bytes()
        faults = await faults_of(self.url)
        print(
            f"{self.content:7} {what:40} {size_bytes / 2**20:8.1f} MiB "
            f"{size_bytes / self.rollouts / 1024:6.2f} KiB a rollout, {seconds:5.0f} s"
            + (f"; db check finds {', '.join(faults)}" if faults else ""),
            flush=True,
        )
        self.began = time.monotonic()

    async def _size_bytes(self) -> int:
        if self.url.startswith("sqlite"):
            return existing_file(self.url).stat().st_size
        async with inspected(self.url) as database:
            return await database.read(_bytes_of_tables)


def _bytes_of_tables(connection: Connection) -> int:
    tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname LIKE 'mipro_%'"
    return int(connection.exec_driver_sql(f"{tables} AND relkind = 'r'").scalar_one())


if __name__ == "__main__":
    sys.exit(main())
