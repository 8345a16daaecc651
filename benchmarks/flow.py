"""What Prefect costs: `optimize_prompt` beside a bare `.map` and beside plain threads.

    python -m benchmarks.flow                  # three rounds, ten minutes on two quiet cores
    python -m benchmarks.flow --rounds 1       # four minutes
    python -m benchmarks.flow --rounds 1 --rollouts 5000 --slow --modes fifty --recommended

A model's server that answers at once, our server and `prefect server start` as it is, each a
process of its own; this process is the client. In every round these take turns, from round to
round in another order:

* map: a flow that maps a task which does nothing, as many tasks as rollouts
* threads: the same calls and rewards over httpx in plain threads, without Prefect and without us
* one: `optimize_prompt`, each rollout a task
* fifty: `optimize_prompt` with `rollouts_per_task=50`

all with as many workers, the flows on a `ThreadPoolTaskRunner`. CPU is what the process has used
until its events are sent, per rollout; that of Prefect's server until it is at rest again. Then the
model's server takes 0.2 s for each call, and what counts is the time from the start of the first
rollout to the end of the last; the whole call of the flow is told as well, of which Prefect itself
waits up to a second for its last heartbeat. Prefect's log is at WARNING. Figures are medians over
rounds, ratios those within a round. No run may lose a task run or a reward. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, task
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from benchmarks.flow_report import (
    MODEL_SECONDS,
    MODES,
    PER_TASK,
    WORKERS,
    Measurement,
    bars,
    table,
)
from benchmarks.gateways.payloads import QUESTION, SYSTEM_PROMPT
from benchmarks.gateways.processes import child, cpu_seconds, free_port
from benchmarks.gateways.systems import CONFIG
from prefect_mipro import optimize_prompt
from prefect_mipro.tasks import LiveRollout, create_session

ROUNDS = 3
ROLLOUTS = (200, 1_000)
SLOW = (200,)
SLOW_MODES = ("threads", "one", "fifty")

RECOMMENDED = {
    f"PREFECT_SERVER_SERVICES_{service}": "100"
    for service in (
        "TASK_RUN_RECORDER_BATCH_SIZE",
        "TASK_RUN_RECORDER_READ_BATCH_SIZE",
        "EVENT_PERSISTER_BATCH_SIZE",
        "EVENT_PERSISTER_READ_BATCH_SIZE",
    )
}

# Rest is little CPU in so many looks in a row.
REST_CORES = 0.05
REST_LOOKS = 4
LOOK_SECONDS = 0.5
LONGEST_DIGESTION_SECONDS = 600.0

Row = dict[str, str]
ROWS: list[Row] = [{"id": str(n), "text": f"{QUESTION} ({n})"} for n in range(60)]
_numbers = count(1)


@dataclass
class Stage:
    """What all runs have: the servers, and where rollouts note their time."""

    backend_url: str
    model_url: str
    prefect_url: str
    prefect_process: int
    times: list[float] = field(default_factory=list)

    def note(self) -> None:
        """A rollout begins or has ended."""
        self.times.append(time.perf_counter())

    def task_runs(self) -> int:
        """How many Prefect knows."""
        return int(httpx.post(f"{self.prefect_url}/task_runs/count", json={}).json())

    def let_prefect_rest(self) -> None:
        """Until its server does nothing more."""
        looks, before = 0, cpu_seconds([self.prefect_process])
        deadline = time.monotonic() + LONGEST_DIGESTION_SECONDS
        while looks < REST_LOOKS and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            now = cpu_seconds([self.prefect_process])
            looks = looks + 1 if now - before < REST_CORES * LOOK_SECONDS else 0
            before = now


def main() -> int:
    options = _options()
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"{options.rounds} rounds, {WORKERS} workers"
    )
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).setLevel(logging.WARNING)
    settings = RECOMMENDED if options.recommended else {}
    with (
        tempfile.TemporaryDirectory(prefix="mipro-flow-") as folder,
        _stage(Path(folder), settings) as stage,
    ):
        for mode in options.modes:
            _measure(stage, mode, 20, number=0)
        cells = [(mode, size, False) for size in options.rollouts for mode in options.modes]
        slow = [(mode, size, True) for size in options.slow for mode in SLOW_MODES]
        cells += [cell for cell in slow if cell[0] in options.modes]
        rows = list(_rounds(stage, options.rounds, cells))
    print("\n" + "\n".join(table(rows)) + "\n")
    found = list(bars(rows))
    for bar in found:
        print(bar)
    return 0 if all(bar.kept for bar in found) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--rollouts", type=int, nargs="+", default=ROLLOUTS, help="of each run; default: 200 1000"
    )
    parser.add_argument(
        "--slow", type=int, nargs="*", default=SLOW, help="rollouts of 0.2 s each; default: 200"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: all")
    parser.add_argument(
        "--recommended", action="store_true", help="Prefect's server as docs/scale.md recommends it"
    )
    return parser.parse_args()


@contextmanager
def _stage(folder: Path, settings: Mapping[str, str]) -> Iterator[Stage]:
    """The three servers, and an environment that names them."""
    key = secrets.token_hex(32)
    python = (sys.executable, "-m")
    with ExitStack() as running:
        model = running.enter_context(
            child([*python, "benchmarks.gateways.mock"], log=folder / "model.log")
        )
        model_url = model.announced_url()
        backend = running.enter_context(
            child(
                [*python, "prefect_mipro.server", "--host", "127.0.0.1", "--port", "0"],
                log=folder / "backend.log",
                environment={
                    "MIPRO_SERVER_API_KEYS": key,
                    "MIPRO_SERVER_DATABASE_URL": f"sqlite:///{folder / 'mipro.db'}",
                    "MIPRO_SERVER_UPSTREAM_URL": model_url,
                    "MIPRO_SERVER_LOG_LEVEL": "warning",
                },
            )
        )
        port = free_port()
        api = f"http://127.0.0.1:{port}/api"
        prefect = running.enter_context(
            child(
                [*python, "prefect", "server", "start", "--port", str(port), "--no-ui"],
                log=folder / "prefect.log",
                environment={
                    "PREFECT_HOME": str(folder / "prefect"),
                    "PREFECT_API_URL": api,
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    **settings,
                },
            )
        )
        prefect.wait_for(f"{api}/health")
        backend_url = backend.announced_url()
        backend.wait_for(f"{backend_url}/health")
        os.environ |= {"MIPRO_BACKEND_URL": backend_url, "MIPRO_API_KEY": key}
        running.enter_context(temporary_settings({PREFECT_API_URL: api}))
        yield Stage(backend_url, model_url, api, prefect.process_id)


def _rounds(
    stage: Stage, rounds: int, cells: Sequence[tuple[str, int, bool]]
) -> Iterator[Measurement]:
    for number in range(1, rounds + 1):
        turned = [*cells[number % len(cells) :], *cells[: number % len(cells)]]
        for mode, size, slow in turned:
            row = _measure(stage, mode, size, number=number, slow=slow)
            print(
                f"round {number}: {mode}, {size} rollouts{' of 0.2 s' if slow else ''}: "
                f"{row.wall_seconds:.2f} s, client {row.client_cpu / size * 1e3:.2f} ms, "
                f"Prefect's server {row.server_cpu / size * 1e3:.2f} ms a rollout",
                flush=True,
            )
            yield row


def _measure(
    stage: Stage, mode: str, rollouts: int, *, number: int, slow: bool = False
) -> Measurement:
    httpx.get(stage.model_url.replace("/v1", f"/pace/{MODEL_SECONDS * 1e3 if slow else 0:g}/0"))
    session_id = f"{mode}-{next(_numbers)}"
    session = create_session.fn(CONFIG, session_id=session_id)
    stage.let_prefect_rest()
    task_runs, server_cpu = stage.task_runs(), cpu_seconds([stage.prefect_process])
    stage.times.clear()
    gc.collect()
    cpu, began = _own_cpu(), time.perf_counter()
    RUNS[mode](stage, session_id, rollouts)
    wall = time.perf_counter() - began
    # The events are sent by a thread of this process, after the flow.
    EventsWorker.instance().wait_until_empty()
    cpu = _own_cpu() - cpu
    stage.let_prefect_rest()
    with httpx.Client(headers={"Authorization": f"Bearer {os.environ['MIPRO_API_KEY']}"}) as http:
        path = f"/api/v1/online/sessions/{session.session_id}"
        status = http.get(f"{stage.backend_url}{path}").raise_for_status().json()
    return Measurement(
        round=number,
        mode=mode,
        rollouts=rollouts,
        slow=slow,
        wall_seconds=wall,
        window_seconds=max(stage.times, default=0.0) - min(stage.times, default=0.0),
        client_cpu=cpu,
        server_cpu=cpu_seconds([stage.prefect_process]) - server_cpu,
        task_runs=stage.task_runs() - task_runs,
        rewards=status["reward_count"],
    )


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@task
def nothing(number: int) -> int:
    """A task that does nothing."""
    return number


def runner() -> TaskRunner[Any]:
    """The same for all flows."""
    return ThreadPoolTaskRunner(max_workers=WORKERS)


@flow(task_runner=runner())
def bare_map(rollouts: int) -> list[int]:
    """As many of them as there are rollouts."""
    return [future.result() for future in nothing.map(range(rollouts))]


def _map(_stage: Stage, _session_id: str, rollouts: int) -> None:
    bare_map(rollouts)


def _threads(stage: Stage, session_id: str, rollouts: int) -> None:
    limits = httpx.Limits(max_connections=WORKERS, max_keepalive_connections=WORKERS)
    headers = {"Authorization": f"Bearer {os.environ['MIPRO_API_KEY']}"}
    with (
        httpx.Client(base_url=stage.backend_url, headers=headers, limits=limits) as http,
        ThreadPoolExecutor(WORKERS) as pool,
    ):

        def rollout(number: int) -> None:
            stage.note()
            row, rollout_id = ROWS[number % len(ROWS)], f"plain-{number}"
            answer = http.post(
                f"/api/mipro/v1/{session_id}/{rollout_id}/chat/completions",
                json={"messages": _messages(row)},
            ).json()
            score = worth(row, answer["choices"][0]["message"]["content"])
            reward = {"rollout_id": rollout_id, "reward_info": {"score": score}}
            path = f"/api/v1/online/sessions/{session_id}/reward"
            http.post(path, json=reward).raise_for_status()
            stage.note()

        list(pool.map(rollout, range(rollouts)))


def _ours(rollouts_per_task: int) -> Callable[[Stage, str, int], None]:
    def run(stage: Stage, session_id: str, rollouts: int) -> None:
        def program(rollout: LiveRollout, row: Row) -> str:
            stage.note()
            return rollout.complete(_messages(row))

        def reward(row: Row, answer: str) -> float:
            # Its report is still to come: a few milliseconds.
            stage.note()
            return worth(row, answer)

        optimize_prompt.with_options(task_runner=runner())(
            CONFIG,
            ROWS,
            program,
            reward,
            rollouts=rollouts,
            session_id=session_id,
            max_workers=WORKERS,
            rollouts_per_task=rollouts_per_task,
        )

    return run


RUNS: dict[str, Callable[[Stage, str, int], None]] = {
    "map": _map,
    "threads": _threads,
    "one": _ours(1),
    "fifty": _ours(PER_TASK),
}


def _messages(row: Row) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": row["text"]},
    ]


def worth(row: Row, answer: str) -> float:
    """Any number will do."""
    return float((len(answer) + int(row["id"])) % 2)


if __name__ == "__main__":
    sys.exit(main())
