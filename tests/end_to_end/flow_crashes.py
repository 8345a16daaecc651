"""A flow whose process is killed in the middle of its rollouts, again and again, and run again.

`optimize_prompt` runs in a process of its own, on a real Prefect server and a real backend, and
gets a SIGKILL after a random number of model calls. Its program keeps a ledger of the rollouts it
has begun. What is left in the backend must agree with that ledger: nothing rewarded twice, nothing
rewarded that never ran, and whatever was served and not rewarded told as open.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect_mipro.client.clients import Client
from prefect_mipro.models.sessions import SessionStatus
from tests.end_to_end.conftest import CONFIG, BackendProcess, messages_of
from tests.end_to_end.crashes import miscounted
from tests.fake_upstream import Body, FakeUpstream, better_with_demonstrations

SESSION_ID = "s"
WORKERS = 4
ROLLOUTS = 60
# A flow that is killed lives for so many model calls at most.
MOST_CALLS = 40
ROWS = [{"id": str(number), "text": f"row {number} #a"} for number in range(50)]

ROOT = Path(__file__).parents[2]


class Begun(NamedTuple):
    """A rollout that a program has begun: its id, and that of its row."""

    rollout_id: str
    row_id: str


@dataclass
class Ran:
    """What a run that was not killed says of itself."""

    rollouts: int
    rewarded: int


class FlowCrashes:
    """One session, and the flow processes that die on it."""

    def __init__(self, folder: Path, *, prefect_api_url: str, seed: int) -> None:
        self.kills = 0
        self._folder = folder
        self._ledger = folder / "ledger"
        self._file = folder / "mipro.db"
        self._prefect_api_url = prefect_api_url
        self._random = random.Random(seed)
        self._calls = threading.Semaphore(0)

    @contextmanager
    def backend(self) -> Iterator[None]:
        """The model's server and the backend, which outlive the flows."""
        database = ("--database-url", f"sqlite+aiosqlite:///{self._file}")
        with FakeUpstream(self._answer) as upstream, ExitStack() as self._running:
            self._options: tuple[str, ...] = (*database, "--upstream-url", upstream.url)
            self._start_backend()
            yield

    def _start_backend(self) -> None:
        self._backend = self._running.enter_context(BackendProcess(*self._options))
        self._url = self._backend.url

    def _restart_backend(self) -> None:
        """Kill it, and start another one in its place."""
        self._backend.kill()
        self._options = (*self._options, "--port", self._url.rpartition(":")[2])
        self._start_backend()

    def kill_one(self) -> UUID:
        """Run the flow, and kill it after a random number of model calls. Returns its run's id."""
        flow = self._begin()
        try:
            for _ in range(self._random.randint(1, MOST_CALLS)):
                assert self._calls.acquire(timeout=120), self._said()
        finally:
            flow.kill()
            flow.communicate()
        while self._calls.acquire(blocking=False):
            pass
        self.kills += 1
        newest, _ = self.begun()[-1]
        return UUID(newest[: len(str(UUID(int=0)))])

    def run_to_the_end(self, flow_run_id: UUID | None = None) -> Ran:
        """Run the flow again: as a new run, or as the same one once more.

        It lives, and meanwhile the backend is killed and comes back.
        """
        flow = self._begin(*([str(flow_run_id)] if flow_run_id else []))
        assert self._calls.acquire(timeout=120), self._said()
        self._restart_backend()
        self.kills += 1
        said, _ = flow.communicate(timeout=300)
        assert flow.returncode == 0, self._said()
        summary = json.loads(said.splitlines()[-1])
        return Ran(summary["rollouts"], summary["rewarded"])

    def status(self) -> SessionStatus:
        """How the backend says that the session stands."""
        with Client(self._url) as client:
            return client.session_status(SESSION_ID)

    def begun(self) -> list[Begun]:
        """What the programs have begun, killed ones included."""
        lines = self._ledger.read_text().splitlines()
        return [Begun(*line.split()) for line in lines]

    def violations(self) -> list[str]:
        """What is wrong with the session as the last flow has left it."""
        status = self.status()  # writes what is still in memory
        with closing(sqlite3.connect(self._file)) as connection:
            connection.row_factory = sqlite3.Row
            return [*self._unaccounted(connection, status), *miscounted(connection)]

    def _unaccounted(self, facts: sqlite3.Connection, status: SessionStatus) -> Iterator[str]:
        """Rollouts and rewards that nobody began, that are there twice, or that nobody is told."""
        begun = dict(self.begun())
        if len(begun) != len(self.begun()):
            yield "a rollout was begun twice"
        served = {row["rollout_id"]: row for row in facts.execute("SELECT * FROM mipro_rollouts")}
        for rollout_id, row in served.items():
            if begun.get(rollout_id) != row["example_id"]:
                yield f"rollout {rollout_id} of row {row['example_id']} was never begun"
        rewards = [row["rollout_id"] for row in facts.execute("SELECT * FROM mipro_rewards")]
        for rollout_id in {*rewards}:
            if rewards.count(rollout_id) > 1 or rollout_id not in served:
                yield f"reward of {rollout_id}: {rewards.count(rollout_id)} times, or of nothing"
        still_open = len(served) - len(rewards)
        flow = status.reward_flow
        told = (flow.rewarded, flow.in_flight + flow.missing)
        if told != (len(rewards), still_open):
            yield f"told are {told}, and there are {len(rewards)} and {still_open}"
        in_hand = self.kills * WORKERS
        if still_open > in_hand:
            yield f"{still_open} rollouts are open after {self.kills} kills of {WORKERS} workers"
        if len(begun) - len(served) > in_hand:
            yield f"{len(begun)} rollouts were begun, and only {len(served)} served"

    def _begin(self, *flow_run_id: str) -> subprocess.Popen[str]:
        with self._log.open("a") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.end_to_end.flow_crashes"),
                    *(self._url, str(self._ledger), *flow_run_id),
                ],
                cwd=ROOT,
                env={**os.environ, "PREFECT_API_URL": self._prefect_api_url},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def _log(self) -> Path:
        return self._folder / "flow.log"

    def _said(self) -> str:
        return self._log.read_text()[-4_000:]

    def _answer(self, body: Body) -> str:
        if "Query: " not in body["messages"][-1]["content"][:20]:
            return "nothing"  # the proposer model
        self._calls.release()
        return better_with_demonstrations(body)


def main() -> None:
    """The flow's process."""
    # Here, because importing Prefect takes seconds that the harness can do without.
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    from prefect_mipro import optimize_prompt
    from prefect_mipro.tasks import LiveRollout

    url, ledger, *flow_run_ids = sys.argv[1:]

    def classify(rollout: LiveRollout, row: dict[str, str]) -> str:
        with Path(ledger).open("a") as lines:
            lines.write(f"{rollout.rollout_id} {row['id']}\n")
        return rollout.complete(messages_of(row["text"]))

    def exact(_row: dict[str, str], answer: str) -> float:
        return float(answer == "a")

    parameters: dict[str, Any] = {
        "config": CONFIG,
        "examples": ROWS,
        "program": classify,
        "reward": exact,
        "rollouts": ROLLOUTS,
        "session_id": SESSION_ID,
        "backend_url": url,
        "max_workers": WORKERS,
    }
    known = None
    for flow_run_id in map(UUID, flow_run_ids):
        with get_client(sync_client=True) as client:
            # As an automation for crashed runs, or a person, has it run again.
            client.set_flow_run_state(flow_run_id, Pending(), force=True)
            known = client.read_flow_run(flow_run_id)
    summary: Any = run_flow(optimize_prompt, flow_run=known, parameters=parameters)
    sys.stdout.write(f"{summary.model_dump_json()}\n")


if __name__ == "__main__":
    main()
