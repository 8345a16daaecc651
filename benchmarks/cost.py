"""What a choice and a status cost in sessions of a thousand and of a million rewards.

    python -m benchmarks.cost

fills one SQLite file for each number of rewards (`benchmarks.long_session`: 50 candidates in play,
a running duel) and times the server's own services on it:

* choice: the draw of a candidate from the plan, as each new rollout makes it
* first call: from the arrival of a rollout's first call to its request upstream: the choice, the
  pin, and all that is read for them
* belief: reading all evidence anew and fitting the model to it, which every fourth reward asks for
* status: the whole status object, which fits the model too

It prints median and 95th percentile of n of each, and the ratio of the medians to those of the
smallest session.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import SecretStr

from benchmarks.long_session import CANDIDATES, EXAMPLES, SESSION_ID, SYSTEM_PROMPT, make
from prefect_mipro.config import MiproConfig
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.optimizer.selection import choose
from prefect_mipro.server.app import create_app
from prefect_mipro.server.routes.dependencies import Backend
from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.calls import Call
from prefect_mipro.server.services.session_cache import PromptCache
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.upstream.interface import StreamedUsage
from prefect_mipro.server.upstream.registry import DEFAULT, Upstreams

REWARDS = (10**3, 10**4, 10**5, 10**6)
REPETITIONS = 200
WARM_UP = 5
# A belief is part of both, and reads more until every stretch has rewards of every candidate.
MEASURED = ("choice", "first_call", "belief", "status")
PROMISED = ("choice", "first_call", "status")
LARGEST_RATIO = 2.0

Seconds = list[float]


@dataclass
class Reply:
    """A short answer that is there already."""

    status: int = 200
    content_type: str = "application/json"
    retry_after_seconds: float | None = None
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    keys: Collection[bytes] = ()
    usage: StreamedUsage = field(default_factory=StreamedUsage)

    async def peek(self, enough: Callable[[bytes], bool]) -> bytes:
        return await self.read()

    async def read(self) -> bytes:
        return b'{"choices": [{"message": {"role": "assistant", "content": "class 1"}}]}'

    async def chunks(self) -> AsyncIterator[bytes]:
        yield await self.read()


@dataclass
class Model:
    """An upstream that answers at once, and notes when it was asked last."""

    asked_at: float = 0.0

    @asynccontextmanager
    async def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Reply]:
        self.asked_at = time.perf_counter()
        yield Reply()

    async def close(self) -> None: ...


class Server:
    """The server's services on one file."""

    def __init__(self, store: Store, backend: Backend, model: Model) -> None:
        self._store = store
        self._backend = backend
        self._model = model
        self._beliefs = Beliefs(store, PromptCache(store))
        self._rollouts = itertools.count(1)

    async def choice(self) -> float:
        """How many seconds it took, as with the other three."""
        session = await self._store.session(SESSION_ID)
        snapshot = await self._beliefs.recent(session)
        duel = await self._store.duel(SESSION_ID)
        mipro = MiproConfig.parse(session.config).mipro
        rng = np.random.default_rng(next(self._rollouts))
        began = time.perf_counter()
        choose(
            snapshot.plan,
            duel=duel,
            expected_deviation=0.0,
            settings=mipro.selection,
            promotion=mipro.promotion,
            rng=rng,
        )
        return time.perf_counter() - began

    async def first_call(self) -> float:
        number = next(self._rollouts)
        call = Call(
            body={
                "model": "m",
                "messages": [
                    {"role": "system", "content": SYSTEM_PROMPT},
                    {"role": "user", "content": "Query: what is this?"},
                ],
            },
            rollout_id=f"measured_{number}",
            example_id=str(number % EXAMPLES),
        )
        began = time.perf_counter()
        session = await self._backend.urls.admit(
            SESSION_ID, callers_workspace=self._backend.keys.workspace_of
        )
        async with self._backend.serving.serve(session, call) as served:
            await served.read()
        return self._model.asked_at - began

    async def belief(self) -> float:
        began = time.perf_counter()
        await self._beliefs.fresh(await self._store.session(SESSION_ID))
        return time.perf_counter() - began

    async def status(self) -> float:
        began = time.perf_counter()
        await self._backend.sessions.status(SESSION_ID)
        return time.perf_counter() - began


@asynccontextmanager
async def serving(file: Path) -> AsyncIterator[Server]:
    """The services as the server puts them together, with a model that answers at once."""
    store, model = await open_store(f"sqlite+aiosqlite:///{file}"), Model()
    try:
        app = create_app(ServerSettings(), store=store, upstreams=Upstreams({DEFAULT: model}))
        async with app.router.lifespan_context(app):
            yield Server(store, app.state.backend, model)
    finally:
        await store.close()


async def measure(files: Mapping[int, Path], *, repetitions: int) -> dict[int, dict[str, Seconds]]:
    """How long each took, by number of rewards and name.

    The sessions take turns, in any order, so that what else the machine does concerns all alike.
    """
    taken: dict[int, dict[str, Seconds]] = {
        rewards: {name: [] for name in MEASURED} for rewards in files
    }
    async with AsyncExitStack() as opened:
        servers = {
            rewards: await opened.enter_async_context(serving(file))
            for rewards, file in files.items()
        }
        rng = np.random.default_rng(0)
        for turn in range(WARM_UP + repetitions):
            for rewards in rng.permutation(list(servers)).tolist():
                for name, seconds in taken[rewards].items():
                    passed = await getattr(servers[rewards], name)()
                    if turn >= WARM_UP:
                        seconds.append(passed)
    return taken


def report(results: Mapping[int, Mapping[str, Seconds]]) -> bool:
    """Print the table. Returns whether the largest session costs about what the smallest does."""
    smallest, largest = min(results), max(results)
    print(f"\n{'rewards':>10}  {'':12}{'n':>6}{'median':>12}{'p95':>12}{'ratio':>8}")
    for rewards, taken in results.items():
        for name, seconds in taken.items():
            median, late = np.percentile(seconds, [50, 95]) * 1_000
            ratio = _ratio(results, name, rewards, smallest)
            times = f"{median:9.3f} ms{late:9.3f} ms"
            print(f"{rewards:10,}  {name:12}{len(seconds):6,}{times}{ratio:8.2f}")
    print()
    passed = True
    for name in PROMISED:
        ratio = _ratio(results, name, largest, smallest)
        flat = ratio <= LARGEST_RATIO
        passed &= flat
        print(
            f"{'PASS' if flat else 'FAIL'}  a {name} at {largest:,} rewards takes at most "
            f"{LARGEST_RATIO:g} times as long as at {smallest:,}: {ratio:.2f}"
        )
    return passed


def _ratio(results: Mapping[int, Mapping[str, Seconds]], name: str, rewards: int, to: int) -> float:
    return float(np.median(results[rewards][name]) / np.median(results[to][name]))


async def _run(rewards: Sequence[int], *, repetitions: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        files = {count: Path(folder) / f"{count}.db" for count in sorted(rewards)}
        for count, file in files.items():
            began = time.perf_counter()
            await make(file, rewards=count)
            seconds, megabytes = time.perf_counter() - began, file.stat().st_size / 1e6
            print(f"{count:,} rewards: {megabytes:,.0f} MB filled in {seconds:.0f} s", flush=True)
        return report(await measure(files, repetitions=repetitions))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rewards", type=int, nargs="+", default=REWARDS)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, numpy {np.__version__}; "
        f"{CANDIDATES} candidates, n = {options.repetitions} of each"
    )
    passed = asyncio.run(_run(options.rewards, repetitions=options.repetitions))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
