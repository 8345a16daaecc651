"""What is measured: the cells of the benchmark, and one system in one of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import httpx

from benchmarks.gateways.load import Job, Outcome
from benchmarks.gateways.processes import cpu_seconds, machine_cpu_seconds, memory_mb
from benchmarks.gateways.systems import Gateway

WARM_UP_SECONDS = 0.3
WARM_UP_CALLS = 64
# Of each session of many: while one has few rollouts, its belief is computed anew every few calls.
WARM_UP_CALLS_OF_A_SESSION = 150
# Work put off until after the answer counts: a system is at rest when it uses less than this.
REST_SHARE = 0.1
REST_SECONDS = 0.1
LONGEST_WAIT_FOR_REST_SECONDS = 5.0


@dataclass(frozen=True)
class Cell:
    """A load: connections, delay of the upstream, whole answers or streams, sessions."""

    name: str
    connections: int
    delay_ms: float = 0.0
    stream: bool = False
    gap_ms: float = 0.0
    sessions: int = 1


CELLS = {
    cell.name: cell
    for cell in (
        Cell("c32", 32),
        Cell("c32-400", 32, sessions=400),
        Cell("c128", 128),
        Cell("c1", 1),
        Cell("c16", 16),
        Cell("c1-50ms", 1, delay_ms=50),
        Cell("c16-50ms", 16, delay_ms=50),
        # One stream after the other is fast; sixteen at once write as a quick model does.
        Cell("stream1", 1, stream=True, gap_ms=1),
        Cell("stream16", 16, stream=True, gap_ms=5),
    )
}


@dataclass(frozen=True)
class Measurement:
    """One system in one cell of one round.

    `cpu_seconds` is that of the system until it is at rest, for all its answers; `foreign_cores`
    the mean number of cores that neither it nor the instruments kept busy meanwhile.
    """

    round: int
    cell: str
    system: str
    outcome: Outcome
    cpu_seconds: float
    foreign_cores: float

    @property
    def calls_per_second(self) -> float:
        return self.outcome.calls / self.outcome.seconds

    @property
    def cpu_microseconds(self) -> float:
        """Per call."""
        return 1e6 * self.cpu_seconds / max(self.outcome.answered, 1)


@dataclass
class Subject:
    """A running system, and what was asked of it so far."""

    name: str
    gateway: Gateway
    sent: int = 0
    answered: int = 0
    upstream_calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    prepared: set[Cell] = field(default_factory=set)

    @property
    def roots(self) -> tuple[int, ...]:
        """Its processes, those of its database among them."""
        return self.gateway.processes + self.gateway.database_processes

    @property
    def failed(self) -> int:
        return self.failures.total()


class Instruments:
    """The mock and the load generator."""

    def __init__(self, mock: subprocess.Popen[str], load: subprocess.Popen[str]) -> None:
        self._load = load
        self.processes = (mock.pid, load.pid)
        self.upstream_url = _line(mock)
        self._control = httpx.Client(base_url=self.upstream_url.removesuffix("/v1"))

    def pace(self, *, delay_ms: float = 0.0, gap_ms: float = 0.0) -> None:
        """How slow the mock is: before each first byte, and between the events of a stream."""
        self._control.get(f"/pace/{delay_ms}/{gap_ms}")

    def warm_up(self, subject: Subject) -> None:
        """A few calls of both kinds: some systems load their parts when the first calls come."""
        self.pace()
        for stream in (False, True):
            self._send(subject, connections=8, stream=stream, calls=WARM_UP_CALLS)

    def prepare(self, subject: Subject, cell: Cell) -> bool:
        """Make the sessions of the cell; whether the system has any."""
        if cell.sessions == 1:
            return True
        if not subject.gateway.with_sessions:
            return False
        if cell not in subject.prepared:
            subject.prepared.add(cell)
            self.pace()
            before = self._upstream_calls()
            subject.gateway.with_sessions(cell.sessions)
            subject.upstream_calls += self._upstream_calls() - before
            calls = cell.sessions * WARM_UP_CALLS_OF_A_SESSION
            self._send(subject, connections=32, stream=False, calls=calls, sessions=cell.sessions)
        return True

    def measure(self, subject: Subject, cell: Cell, *, number: int, seconds: float) -> Measurement:
        """Calls for so long."""
        self._at_rest(subject)
        self.pace(delay_ms=cell.delay_ms, gap_ms=cell.gap_ms)
        machine, instruments, own = self._cpu(subject)
        began = time.monotonic()
        outcome = self._send(
            subject,
            connections=cell.connections,
            stream=cell.stream,
            warm_up_seconds=WARM_UP_SECONDS,
            seconds=seconds,
            sessions=cell.sessions,
        )
        self._at_rest(subject)
        passed = time.monotonic() - began
        machine_after, instruments_after, own_after = self._cpu(subject)
        foreign = (machine_after - machine) - (instruments_after - instruments) - (own_after - own)
        return Measurement(
            round=number,
            cell=cell.name,
            system=subject.name,
            outcome=outcome,
            cpu_seconds=own_after - own,
            foreign_cores=max(foreign, 0.0) / passed,
        )

    def memory(self, subject: Subject, *, calls: int, step: int) -> Iterator[tuple[int, float]]:
        """Resident megabytes after each `step` calls at 32 connections, from the start on."""
        self.pace()
        yield 0, memory_mb(subject.gateway.processes)
        for done in range(step, calls + 1, step):
            self._send(subject, connections=32, stream=False, calls=step)
            yield done, memory_mb(subject.gateway.processes)

    def _send(
        self,
        subject: Subject,
        *,
        connections: int,
        stream: bool,
        warm_up_seconds: float = 0.0,
        seconds: float | None = None,
        calls: int | None = None,
        sessions: int = 1,
    ) -> Outcome:
        gateway = subject.gateway
        many = gateway.with_sessions if sessions > 1 else None
        job = Job(
            url=many(sessions) if many else gateway.url,
            headers=gateway.headers,
            body=gateway.body(stream=stream).decode(),
            connections=connections,
            stream=stream,
            wanted_header=gateway.wanted_header,
            same_bytes=gateway.same_bytes,
            first_call=subject.sent,
            warm_up_seconds=warm_up_seconds,
            seconds=seconds,
            calls=calls,
            others=gateway.other_urls,
            sessions=sessions,
        )
        before = self._upstream_calls()
        assert self._load.stdin
        self._load.stdin.write(json.dumps(asdict(job)) + "\n")
        self._load.stdin.flush()
        outcome = Outcome.parse(_line(self._load))
        subject.upstream_calls += self._upstream_calls() - before
        failed = sum(outcome.failures.values())
        subject.sent += outcome.answered + failed + connections
        subject.answered += outcome.answered
        subject.failures.update(outcome.failures)
        return outcome

    def _upstream_calls(self) -> int:
        return int(self._control.get("/calls").text)

    def _cpu(self, subject: Subject) -> tuple[float, float, float]:
        return machine_cpu_seconds(), cpu_seconds(self.processes), cpu_seconds(subject.roots)

    def _at_rest(self, subject: Subject) -> None:
        """Wait until the system has done what it put off."""
        deadline = time.monotonic() + LONGEST_WAIT_FOR_REST_SECONDS
        used = cpu_seconds(subject.roots)
        while time.monotonic() < deadline:
            time.sleep(REST_SECONDS)
            before, used = used, cpu_seconds(subject.roots)
            if used - before <= REST_SHARE * REST_SECONDS:
                return


@contextmanager
def instruments() -> Iterator[Instruments]:
    """The mock and the load generator as processes, for the length of a `with` block."""
    with _module("benchmarks.gateways.mock") as mock, _module("benchmarks.gateways.load") as load:
        yield Instruments(mock, load)


@contextmanager
def _module(name: str) -> Iterator[subprocess.Popen[str]]:
    """It ends with its standard input, and so with this process, however that ends."""
    command = [sys.executable, "-m", name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with exit code {process.wait()}")
    return line


def median(values: Sequence[float]) -> float:
    """NaN without any."""
    return statistics.median(values) if values else float("nan")
