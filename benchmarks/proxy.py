"""The proxy beside its peers: throughput, added latency, first bytes, CPU and memory.

    python -m benchmarks.proxy                                       # all that is installed here
    python -m benchmarks.proxy --quick                               # direct, bare, ours: a minute
    python -m benchmarks.proxy --peers-venv ~/peers-venv             # LiteLLM and TensorZero, too

A mock upstream and a load generator, each a process of its own, drive these systems in turn:

* direct: no gateway, which shows what the instruments can do
* bare: a pass-through of the same libraries as ours that does nothing else
* ours: `python -m prefect_mipro.server` with a key, a session of five candidates made over HTTP, a
  fresh rollout for each call, its pin, trace and sensors in SQLite on disk
* litellm: the LiteLLM proxy with one worker and a key, and no database
* tensorzero: its gateway with adaptive experimentation over as many variants, each episode's
  variant and each inference kept in a PostgreSQL of its own; the gateway in its wheel takes no
  feedback, so it tries the variants in turn

The peers' dependencies clash with ours, so they live in a virtual environment of their own:

    python3 -m venv ~/peers-venv
    ~/peers-venv/bin/pip install 'litellm[proxy]' 'tensorzero==2026.6.0'

TensorZero also needs the programs of PostgreSQL (`apt install postgresql`). What is not installed
is left out, and said. In every round each cell goes through all systems, so that what else the
machine does concerns all alike; figures are medians over rounds, differences and ratios those
within a round. When all is measured, our server is killed, and the database must hold a rollout and
a trace for each call that was answered.

Cells: c32 and c128 are 32 and 128 connections, the upstream answers at once; c32-400 is
c32 with 400 of our sessions, which get the calls in turns; c1, c16 and the same with 50 ms are for
latency; stream1 and stream16 for the time to the first byte of a stream. CPU is that of the
system's processes, its database's included, until they are at rest again; peak memory is without
the database. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.gateways.cells import CELLS, Instruments, Measurement, Subject, instruments
from benchmarks.gateways.peers import litellm, tensorzero
from benchmarks.gateways.processes import NotStarted, peak_memory_mb
from benchmarks.gateways.report import Bar, Rows, bars, memory_bar, tables
from benchmarks.gateways.systems import NotInstalled, Site, System, bare, direct, ours

SYSTEMS: dict[str, System] = {
    "direct": direct,
    "bare": bare,
    "ours": ours,
    "litellm": litellm,
    "tensorzero": tensorzero,
}
QUICK_SYSTEMS = ("direct", "bare", "ours")
QUICK_CELLS = ("c32", "c32-400", "c1", "stream1")
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 4.0, 1.5
MEMORY_CALLS = 200_000
MEMORY_SAMPLES = 20


def main() -> int:
    options = _options()
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}; "
        f"{options.rounds} rounds of {options.seconds:g} s"
    )
    passed = True
    with tempfile.TemporaryDirectory(prefix="mipro-proxy-") as folder, ExitStack() as running:
        # The user that PostgreSQL runs as must get through.
        os.chmod(folder, 0o711)
        tools = running.enter_context(instruments())
        site = Site(tools.upstream_url, Path(folder), options.peers_venv)
        subjects, found = _start(options.systems, site, running)
        rows, peak_mb = _measure(tools, subjects, options)
        print("\n" + tables(rows, peak_mb) + "\n")
        found += bars(rows)
        if options.memory_calls:
            found += _memory(tools, subjects, options.memory_calls)
        for subject in subjects:
            found += _complaints(subject)
        for bar in found:
            print(bar)
            passed &= bar.kept
    if options.output:
        options.output.write_text(json.dumps([asdict(row) for row in rows.rows], indent=1))
    return 0 if passed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    venv = os.environ.get("MIPRO_BENCHMARK_PEERS_VENV")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all")
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"of each measurement; default: {SECONDS:g}")
    parser.add_argument(
        "--memory-calls",
        type=int,
        help=f"to sample our memory over, 0 for none; default: {MEMORY_CALLS}",
    )
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=Path(venv) if venv else None,
        help="virtual environment of LiteLLM and TensorZero; default: MIPRO_BENCHMARK_PEERS_VENV",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"where nothing else is said: {', '.join(QUICK_SYSTEMS)} in {', '.join(QUICK_CELLS)}, "
        f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS:g} s, no memory",
    )
    parser.add_argument("--output", type=Path, help="JSON file for all measurements")
    options = parser.parse_args()
    quick = options.quick
    options.systems = options.systems or list(QUICK_SYSTEMS if quick else SYSTEMS)
    options.cells = options.cells or list(QUICK_CELLS if quick else CELLS)
    options.rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    options.seconds = options.seconds or (QUICK_SECONDS if quick else SECONDS)
    if options.memory_calls is None:
        options.memory_calls = 0 if quick else MEMORY_CALLS
    return options


def _start(names: Sequence[str], site: Site, running: ExitStack) -> tuple[list[Subject], list[Bar]]:
    """The systems that can be had here, each started, and those that should have and did not."""
    subjects, failed = [], []
    for name in names:
        try:
            gateway = running.enter_context(SYSTEMS[name](site))
        except NotInstalled as reason:
            print(f"{name} is left out: {reason}")
        except NotStarted as reason:
            failed.append(Bar(False, f"{name} runs", str(reason)))
        else:
            subjects.append(Subject(name, gateway))
            print(f"{name} {gateway.version}".strip(), "runs", flush=True)
    return subjects, failed


def _measure(
    tools: Instruments, subjects: Sequence[Subject], options: argparse.Namespace
) -> tuple[Rows, dict[str, float]]:
    rows: list[Measurement] = []
    for subject in subjects:
        tools.warm_up(subject)
    for number in range(1, options.rounds + 1):
        for cell in options.cells:
            measured = [
                tools.measure(subject, CELLS[cell], number=number, seconds=options.seconds)
                for subject in subjects
                if tools.prepare(subject, CELLS[cell])
            ]
            print(f"round {number}: {cell}: {_short(measured)}", flush=True)
            rows += measured
    return Rows(rows), {s.name: peak_memory_mb(s.gateway.processes) for s in subjects if s.roots}


def _short(rows: Sequence[Measurement]) -> str:
    return ", ".join(
        f"{row.system} {row.calls_per_second:,.0f}/s {row.outcome.latency_p50 * 1e3:.2f} ms"
        for row in rows
    )


def _memory(tools: Instruments, subjects: Sequence[Subject], calls: int) -> list[Bar]:
    found = []
    for subject in subjects:
        if subject.name == "ours":
            samples = []
            for done, megabytes in tools.memory(
                subject, calls=calls, step=max(calls // MEMORY_SAMPLES, 1)
            ):
                samples.append((done, megabytes))
                print(f"memory: {done:,} calls, {megabytes:.1f} MB", flush=True)
            found.append(memory_bar(samples))
    return found


def _complaints(subject: Subject) -> list[Bar]:
    """What was wrong with a system's answers, and with what it kept of them."""
    failures = "; ".join(f"{count:,} x {why}" for why, count in subject.failures.most_common(3))
    found = [
        Bar(
            not subject.failed,
            f"all answers of {subject.name} are right",
            failures or f"{subject.answered:,}",
        ),
        Bar(
            subject.upstream_calls >= subject.answered,
            f"each answer of {subject.name} came from the upstream",
            f"{subject.upstream_calls:,} calls there for {subject.answered:,} answers",
        ),
    ]
    if subject.gateway.kept:
        lost = "; ".join(subject.gateway.kept(subject.answered, subject.failed))
        found.append(
            Bar(
                not lost,
                f"the database of {subject.name} holds every call that was answered",
                lost or f"{subject.answered:,}",
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
