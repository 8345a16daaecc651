"""Our optimizer on a labelling task, as a user runs it: a server process, its proxy, rewards."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count, product
from pathlib import Path
from typing import Any

import httpx

from benchmarks.counting_server import CountingServer, Usage
from benchmarks.labelling import Row, Task, stream
from benchmarks.runs import Ledger, Pool, Prompt, Run, Tested
from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.config import read_toml
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationsValue,
    InstructionValue,
    LeverActor,
    LeverName,
    LeverProvenance,
    LeverVersion,
)
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.upstream.model_file import MODEL_NAME

REFERENCE_CONFIG = Path(__file__).parent.parent / "flows" / "everyday_intents.toml"
# A round of proposals that begins with the last reward makes about so many calls.
CALLS_LEFT_FOR_PROPOSALS = 4
QUIET_SECONDS = 1.0


def optimize(
    task: Task,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    *,
    seed: int,
    max_tokens: int,
    proposer_tokens: int,
    budgets: Mapping[str, int],
    threads: int,
    server: CountingServer,
    label: str,
    pool: Pool | None = None,
) -> Run:
    """Learn on a stream of the rows, then test the champions.

    `budgets` are calls after which the champion is asked for, by name, in growing order; so is the
    candidate in the lead, which has yet to win a duel. A given `pool` takes the place of proposals,
    and what it took to make it counts.
    """
    config = session_config(task, seed=seed, max_tokens=max_tokens, proposer_tokens=proposer_tokens)
    spent_before = pool.calls if pool else 0
    fixed_pool = {"prompt_learning.mipro.online_proposer_mode": "off"} if pool else {}
    with tempfile.TemporaryDirectory() as folder:
        if pool:
            _store_pool(Path(folder), config, pool, server=server, label=label)
        with (
            _backend(Path(folder), server=server, label=label) as backend,
            httpx.Client(trust_env=False, timeout=600.0) as http,
        ):
            session = _create(backend, config, overrides=fixed_pool)
            learning = _Learning(
                task, rows, session, http, server=server, label=label, seed=seed, threads=threads
            )
            named: dict[str, tuple[int, str]] = {}
            for point, budget in budgets.items():
                learning.go_on(budget - spent_before)
                status = session.status()
                calls = spent_before + learning.calls
                named[f"champion at {point}"] = (calls, status["champion_candidate_id"])
                named[f"leader at {point}"] = (calls, status["best_candidate_id"])
            used = server.usage(f"{label}.task"), server.usage(f"{label}.proposer")
            prompts = session.status()["candidates"]
            trials = {
                candidate_id: learning.test(candidate_id, held_out)
                for candidate_id in dict.fromkeys(
                    candidate_id for _, candidate_id in named.values()
                )
            }
    return Run.of(
        task=used[0] + Usage(calls=spent_before),
        proposer=used[1],
        rewards=(
            *(pool.rewards if pool else ()),
            *((spent_before + made, reward) for made, reward in learning.ledger.rewards),
        ),
        seconds=learning.seconds,
        tested={
            point: Tested(
                calls=calls,
                prompt=_prompt(prompts[candidate_id]),
                rewards=trials[candidate_id][0],
                prompt_tokens=trials[candidate_id][1],
            )
            for point, (calls, candidate_id) in named.items()
        },
    )


def test_prompt(
    task: Task,
    prompt: Prompt,
    held_out: Sequence[Row],
    *,
    max_tokens: int,
    threads: int,
    server: CountingServer,
    label: str,
) -> tuple[tuple[float, ...], float]:
    """The rewards of a prompt that no session knows, and its mean tokens."""
    with (
        httpx.Client(trust_env=False, timeout=600.0) as http,
        ThreadPoolExecutor(threads) as pool,
    ):

        def rewarded(row: Row) -> float:
            body = {
                "model": MODEL_NAME,
                "messages": prompt.messages(row.text),
                "temperature": 0.0,
                "max_tokens": max_tokens,
            }
            reply = http.post(f"{server.url(label)}/chat/completions", json=body)
            return task.reward(row.label, _text(reply))

        rewards = tuple(pool.map(rewarded, held_out))
    return rewards, server.usage(label).prompt_tokens / len(held_out)


def session_config(task: Task, *, seed: int, max_tokens: int, proposer_tokens: int) -> JsonObject:
    """The reference flow's config with the task's own prompt and sizes, and the counted models."""
    config = read_toml(REFERENCE_CONFIG)
    learning = config["prompt_learning"]
    learning["initial_prompt"]["messages"] = [
        {"role": "system", "order": 0, "pattern": task.instruction},
        {"role": "user", "order": 1, "pattern": "{request}"},
    ]
    learning["policy"] |= {
        "provider": "task",
        "temperature": 0.0,
        "max_completion_tokens": max_tokens,
    }
    mipro = learning["mipro"]
    mipro["seed"] = seed
    mipro["proposer"] |= {"provider": "proposer", "max_tokens": proposer_tokens}
    mipro["demonstrations"]["sizes"] = list(task.demonstration_sizes)
    return config


class _Learning:
    """A session's rollouts, several at a time, and what they earn."""

    def __init__(
        self,
        task: Task,
        rows: Sequence[Row],
        session: MiproOnlineSession,
        http: httpx.Client,
        *,
        server: CountingServer,
        label: str,
        seed: int,
        threads: int,
    ) -> None:
        self.ledger = Ledger(label, lambda: self.calls)
        self.seconds = 0.0
        self._task = task
        self._session = session
        self._http = http
        self._server = server
        self._label = label
        self._threads = threads
        self._numbered = zip(count(1), stream(rows, seed=seed), strict=False)
        self._begun = 0
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Calls made so far, the proposer's included."""
        return self._server.usage(f"{self._label}.task", f"{self._label}.proposer").calls

    def go_on(self, budget: int) -> None:
        """Run rollouts until so many calls have been made in all, and wait for what they began.

        A round of proposals may still begin with one of the last rewards, hence the few calls that
        are kept for it at first.
        """
        started = time.perf_counter()
        with ThreadPoolExecutor(self._threads) as pool:
            workers = [
                pool.submit(self._work, budget - CALLS_LEFT_FOR_PROPOSALS)
                for _ in range(self._threads)
            ]
            for worker in workers:
                worker.result()
        self._settle()
        self._work(budget)
        self._settle()
        self.seconds += time.perf_counter() - started

    def test(self, candidate_id: str, held_out: Sequence[Row]) -> tuple[tuple[float, ...], float]:
        """The rewards of a candidate outside of learning, and the mean tokens of its prompt."""
        before = self._server.usage(f"{self._label}.task")
        with ThreadPoolExecutor(self._threads) as pool:
            rewards = pool.map(
                lambda row: self._task.reward(
                    row.label,
                    self._answer(row, f"test-{row.row_id}", {"x-mipro-candidate-id": candidate_id}),
                ),
                held_out,
            )
            collected = tuple(rewards)
        used = self._server.usage(f"{self._label}.task") - before
        if used.calls != len(held_out):
            raise RuntimeError(f"{used.calls} calls for {len(held_out)} held-out rows")
        return collected, used.prompt_tokens / used.calls

    def _work(self, budget: int) -> None:
        while (numbered := self._next(budget)) is not None:
            self._rollout(*numbered)

    def _next(self, budget: int) -> tuple[int, Row] | None:
        with self._lock:
            if self._begun + self._server.usage(f"{self._label}.proposer").calls >= budget:
                return None
            self._begun += 1
            return next(self._numbered)

    def _rollout(self, number: int, row: Row) -> None:
        rollout_id = f"rollout-{number}"
        answer = self._answer(row, rollout_id, {"x-mipro-example-id": row.row_id})
        reward = self._task.reward(row.label, answer)
        self.ledger.add(reward)
        self._session.update_reward(
            reward_info={"score": reward},
            rollout_id=rollout_id,
            metadata={"expected": row.label, "example_id": row.row_id, "shareable": True},
        )

    def _answer(self, row: Row, rollout_id: str, headers: Mapping[str, str]) -> str:
        reply = self._http.post(
            f"{self._session.online_url}/{rollout_id}/chat/completions",
            json={"messages": Prompt(instruction=self._task.instruction).messages(row.text)},
            headers=headers,
        )
        return _text(reply)

    def _settle(self) -> None:
        """Wait until the server has been left alone for a while."""
        quiet_since, calls = time.monotonic(), self.calls
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            time.sleep(0.05)
            if not self._server.idle or self.calls != calls:
                quiet_since, calls = time.monotonic(), self.calls


def _text(reply: httpx.Response) -> str:
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


@contextmanager
def _backend(folder: Path, *, server: CountingServer, label: str) -> Iterator[EmbeddedBackend]:
    """The server in a process of its own, with both of its models at the counting server."""
    providers = {role: {"base_url": server.url(f"{label}.{role}")} for role in ("task", "proposer")}
    with EmbeddedBackend(
        database_url=_database_url(folder),
        log_path=folder / "server.log",
        environment={"MIPRO_SERVER_PROVIDERS": json.dumps(providers)},
    ) as backend:
        yield backend


def _database_url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'mipro.db'}"


def _create(
    backend: EmbeddedBackend, config: JsonObject, *, overrides: JsonObject
) -> MiproOnlineSession:
    """The session, or the one of this name that is there already, at the backend's new address."""
    return MiproOnlineSession.create(
        config_body=config,
        overrides=overrides,
        session_id="benchmark",
        backend_url=backend.url,
        api_key=backend.api_key.get_secret_value(),
    )


def _prompt(report: Mapping[str, Any]) -> Prompt:
    return Prompt(
        instruction=report["instruction"],
        demonstrations=tuple((d["input"], d["output"]) for d in report["demonstrations"]),
    )


def _store_pool(
    folder: Path, config: JsonObject, pool: Pool, *, server: CountingServer, label: str
) -> None:
    """A session whose candidates are all pairs of the pool's parts.

    They are put into its store while no server runs: over HTTP one cannot add demonstrations.
    """
    overrides: JsonObject = {"prompt_learning.mipro.online_proposer_mode": "off"}
    with _backend(folder, server=server, label=label) as backend:
        session_id = _create(backend, config, overrides=overrides).session_id
    asyncio.run(_add(_database_url(folder), session_id, pool))


async def _add(database_url: str, session_id: str, pool: Pool) -> None:
    now = datetime.now(UTC)
    given = LeverProvenance(actor=LeverActor.HUMAN, operator="human", reason="a given pool")
    values: list[tuple[LeverName, int, InstructionValue | DemonstrationsValue]] = [
        *(
            (LeverName.INSTRUCTION, number, InstructionValue(text=text))
            for number, text in enumerate(pool.instructions, start=1)
        ),
        *(
            (
                LeverName.DEMONSTRATIONS,
                number,
                DemonstrationsValue(
                    demonstrations=tuple(Demonstration(input=i, output=o) for i, o in pairs)
                ),
            )
            for number, pairs in enumerate(pool.demonstration_sets, start=1)
        ),
    ]
    levers = [
        LeverVersion(
            lever=lever,
            version=version,
            value=value,
            parent_version=1,
            provenance=given,
            created_at=now,
        )
        for lever, version, value in values
        if version > 1
    ]
    pairs = product(
        range(1, len(pool.instructions) + 1), range(1, len(pool.demonstration_sets) + 1)
    )
    store = await open_store(database_url)
    try:
        session = await store.session(session_id)
        candidates = [
            Candidate(
                candidate_id=f"given-{number}",
                session_id=session_id,
                number=number,
                instruction_version=instruction,
                demonstrations_version=demonstrations,
                parent_id=session.baseline_id,
                created_at=now,
            )
            for number, (instruction, demonstrations) in enumerate(pairs, start=1)
            if number > 1
        ]
        await store.add_candidates(session_id, levers, candidates)
    finally:
        await store.close()
