"""Hours in minutes: a steady load, a flood of five times what the server can do, a steady load.

    python -m benchmarks.soak                                             # 17 minutes
    python -m benchmarks.soak --steady 3 --flood 1 --period 5   # 40 s and the rests

A real server process on SQLite, with a key, a session of five candidates and at most 250 calls in
flight, before a mock upstream that takes 20 ms. First the most calls a second that 128 connections
get out of it: its capacity. Then calls come at a fifth of that, then at five times that, then again
at a fifth, whatever becomes of them; one in ten is a stream, one in five earns a reward, which all
cost more than the plain calls of which the capacity is told.
A line for each period (60 s), and at the end a bar for each promise:

* memory is flat: the resident memory of the last period of a steady phase is no more than 5 MB
  above that of its second, and 40 MB above that of before the flood, whose buffers Python keeps
* p99 is flat: its median in the second steady phase is at most 1.5 times that of the first, and
  that of a phase's later half at most 1.5 times that of its earlier half
* a descriptor for each connection and no more: at rest at most eight more than before
* the flood is answered: with 200, or with 429 and Retry-After, never otherwise; and the server goes
  on serving a fifth of its capacity meanwhile
* it recovers by itself, within 10 s: nothing refused, p99 at most twice that of the first phase
* in the steady phases nothing is refused, nothing fails
* the database has each answered call and each acknowledged reward, once

Needs Linux, and a machine with nothing else to do. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.gateways.cells import CELLS, Instruments, Subject, instruments, median
from benchmarks.gateways.flood import Plan, Second
from benchmarks.gateways.processes import descriptors, memory_mb
from benchmarks.gateways.report import Bar
from benchmarks.gateways.systems import REWARDED, Gateway, Site, ours

CALLS_IN_FLIGHT = 250
MOST_CONNECTIONS = 5 * CALLS_IN_FLIGHT
STEADY_SHARE, FLOOD_TIMES = 0.2, 5.0
UPSTREAM_MS = 20.0
CAPACITY_SECONDS = 10.0
# The server keeps idle connections to a model for 60 s, and looks for those every 60 s.
REST_SECONDS = 125.0

MOST_GROWTH_MB, MOST_LEFT_BY_FLOOD_MB = 5.0, 40.0
MOST_TIMES_P99 = 1.5
# The store opens its readers when they are first needed: two descriptors each.
MOST_DESCRIPTORS_LEFT = 8
LEAST_SERVED_IN_FLOOD = 0.2
RECOVERY_SECONDS, CALM_SECONDS, CALM_TIMES_P99 = 10, 3, 2.0


@dataclass(frozen=True)
class Period:
    """What a line tells: some seconds of one phase, and the server's state at their end."""

    phase: str
    seconds: tuple[Second, ...]
    memory_mb: float
    descriptors: int

    @property
    def p99_ms(self) -> float:
        return _p99_ms(self.seconds)

    def __str__(self) -> str:
        good, refused, unsent, rewards = (
            sum(getattr(second, name) for second in self.seconds)
            for name in ("good", "refused", "unsent", "rewards")
        )
        return (
            f"{self.phase:7} {good / len(self.seconds):7,.0f} answered/s, "
            f"{refused / len(self.seconds):7,.0f} refused/s, {unsent:7,} unsent, "
            f"{rewards:6,} rewards, p99 {self.p99_ms:7.1f} ms, {self.memory_mb:6.1f} MB, "
            f"{self.descriptors:5} descriptors"
        )


@dataclass(frozen=True)
class Soak:
    """A whole run. `at_rest` are the descriptors before the first phase and after the last."""

    capacity: float
    periods: Sequence[Period]
    at_rest: tuple[int, int]

    def of(self, phase: str) -> list[Period]:
        return [period for period in self.periods if period.phase == phase]

    def seconds(self, *phases: str) -> list[Second]:
        return [
            second for period in self.periods if period.phase in phases for second in period.seconds
        ]

    @property
    def recovery_seconds(self) -> int | None:
        """From the end of the flood to the first of some calm seconds; `None` without any."""
        bound = CALM_TIMES_P99 * median([period.p99_ms for period in self.of("before")])
        calm = 0
        for number, second in enumerate(self.seconds("after")):
            disturbed = second.refused or second.unsent or second.faults
            calm = 0 if disturbed or _p99_ms([second]) > bound else calm + 1
            if calm == CALM_SECONDS:
                return number + 1 - CALM_SECONDS
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steady", type=int, default=5, help="periods before, and after the flood")
    parser.add_argument("--flood", type=int, default=2, help="periods of it")
    parser.add_argument("--period", type=int, default=60, help="seconds")
    parser.add_argument(
        "--rest", type=float, default=REST_SECONDS, help="seconds, before and after"
    )
    options = parser.parse_args(arguments)
    phases = [
        ("before", STEADY_SHARE, options.steady),
        ("flood", FLOOD_TIMES, options.flood),
        ("after", STEADY_SHARE, options.steady),
    ]
    with tempfile.TemporaryDirectory(prefix="mipro-soak-") as folder, instruments() as tools:
        site = Site(tools.upstream_url, Path(folder))
        settings = {"MIPRO_SERVER_MAX_CALLS_IN_FLIGHT": str(CALLS_IN_FLIGHT)}
        with ours(site, settings) as gateway:
            subject = Subject("ours", gateway)
            soak = run(tools, subject, phases, period=options.period, rest_seconds=options.rest)
            found = [*bars(soak), *_kept(soak, subject, Path(folder) / "ours.db")]
    for bar in found:
        print(bar)
    return 0 if all(bar.kept for bar in found) else 1


def run(
    tools: Instruments,
    subject: Subject,
    phases: Sequence[tuple[str, float, int]],
    *,
    period: int,
    rest_seconds: float,
) -> Soak:
    """Name, share of the capacity and number of periods of each phase."""
    [server] = subject.gateway.processes
    tools.warm_up(subject)
    measured = tools.measure(subject, CELLS["c128"], number=0, seconds=CAPACITY_SECONDS)
    capacity = measured.calls_per_second
    print(f"capacity: {capacity:,.0f} calls/s", flush=True)
    time.sleep(rest_seconds)
    before = descriptors(server)
    tools.pace(delay_ms=UPSTREAM_MS, gap_ms=1.0)
    plan = Plan(
        url=subject.gateway.url,
        reward_url=_reward_url(subject.gateway),
        headers=subject.gateway.headers,
        phases=[(share * capacity, periods * period) for _, share, periods in phases],
        most_connections=MOST_CONNECTIONS,
        first_call=subject.sent,
    )
    names = [name for name, _, count in phases for _ in range(count)]
    periods: list[Period] = []
    seconds: list[Second] = []
    for second in _seconds(plan):
        seconds.append(second)
        # Before the next period shows in the state of the server.
        if (second.number + 1) // period > len(periods):
            name = names[len(periods)]
            periods.append(Period(name, tuple(seconds), memory_mb([server]), descriptors(server)))
            print(periods[-1], flush=True)
            seconds = []
    # Answers that came after the end.
    periods[-1] = replace(periods[-1], seconds=(*periods[-1].seconds, *seconds))
    time.sleep(rest_seconds)
    return Soak(capacity, periods, (before, descriptors(server)))


def _seconds(plan: Plan) -> Iterator[Second]:
    command = [sys.executable, "-m", "benchmarks.gateways.flood"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(asdict(plan)) + "\n")
        process.stdin.close()
        yield from map(Second.parse, process.stdout)
    if process.returncode:
        raise RuntimeError(f"the load generator ended with exit code {process.returncode}")


def _reward_url(gateway: Gateway) -> str:
    """From .../api/mipro/v1/SESSION/call_{n}/chat/completions."""
    origin, _, path = gateway.url.partition("/api/mipro/v1/")
    return f"{origin}/api/v1/online/sessions/{path.partition('/')[0]}/reward"


def bars(soak: Soak) -> Iterator[Bar]:
    """What was promised of the server while it ran."""
    for phase in ("before", "after"):
        periods = soak.of(phase)[1:]
        growth = periods[-1].memory_mb - periods[0].memory_mb
        yield Bar(
            growth <= MOST_GROWTH_MB, f"memory is flat {phase} the flood", f"{growth:+.1f} MB"
        )
        half = len(periods) // 2
        early, late = _p99_of(periods[: half or 1]), _p99_of(periods[half:])
        yield Bar(
            late <= MOST_TIMES_P99 * early,
            f"p99 is flat {phase} the flood",
            f"{early:.1f} ms, then {late:.1f} ms",
        )
    left = soak.of("after")[-1].memory_mb - soak.of("before")[-1].memory_mb
    yield Bar(left <= MOST_LEFT_BY_FLOOD_MB, "the flood leaves little memory", f"{left:+.1f} MB")
    first, last = _p99_of(soak.of("before")), _p99_of(soak.of("after"))
    yield Bar(
        last <= MOST_TIMES_P99 * first,
        "p99 after the flood is as before",
        f"{first:.1f} ms, then {last:.1f} ms",
    )
    before, after = soak.at_rest
    yield Bar(
        after - before <= MOST_DESCRIPTORS_LEFT,
        "no descriptor is left over",
        f"{before} before, {after} after, at rest",
    )
    flood = soak.seconds("flood")
    refused = sum(second.refused for second in flood)
    faults = sum((second.faults for second in flood), Counter[str]())
    yield Bar(
        bool(refused) and not faults,
        "what is too much is told 429 and Retry-After, nothing else",
        _told(faults) or f"{refused:,} times",
    )
    served = sum(second.good for second in flood) / len(flood)
    yield Bar(
        served >= LEAST_SERVED_IN_FLOOD * soak.capacity,
        "the flood does not stop the service",
        f"{served:,.0f} calls/s, {served / soak.capacity:.0%} of the capacity",
    )
    recovery = soak.recovery_seconds
    yield Bar(
        recovery is not None and recovery <= RECOVERY_SECONDS,
        "it recovers by itself",
        "never" if recovery is None else f"after {recovery} s",
    )
    # Right after the flood its last answers come in.
    steady = soak.seconds("before") + soak.seconds("after")[RECOVERY_SECONDS:]
    faults = sum((second.faults for second in steady), Counter[str]())
    refused = sum(second.refused + second.refused_rewards for second in steady)
    yield Bar(
        not refused and not faults,
        "under a steady load nothing is refused, nothing fails",
        _told(faults) or f"{refused} refused of {sum(second.good for second in steady):,}",
    )


def _kept(soak: Soak, subject: Subject, database: Path) -> Iterator[Bar]:
    """What is in the database after the process was killed."""
    assert subject.gateway.kept
    seconds = soak.seconds("before", "flood", "after")
    good = subject.answered + sum(second.good for second in seconds)
    faults = subject.failed + sum(second.faults.total() for second in seconds)
    rewards = sum(second.rewards for second in seconds)
    complaints = subject.gateway.kept(good, faults)
    yield Bar(not complaints, "each answered call is kept", "; ".join(complaints) or f"{good:,}")
    with closing(sqlite3.connect(database)) as connection:
        [kept] = connection.execute("SELECT count(*) FROM mipro_rewards").fetchone()
    yield Bar(
        rewards <= kept - REWARDED <= rewards + faults,
        "each acknowledged reward is kept, once",
        f"{rewards:,} acknowledged, {kept - REWARDED:,} kept",
    )


def _told(faults: Counter[str]) -> str:
    return "; ".join(f"{count:,} x {why}" for why, count in faults.most_common(3))


def _p99_ms(seconds: Sequence[Second]) -> float:
    latencies = sorted(latency for second in seconds for latency in second.latencies)
    return 1e3 * latencies[int(len(latencies) * 0.99)] if latencies else float("nan")


def _p99_of(periods: Sequence[Period]) -> float:
    return median([period.p99_ms for period in periods])


if __name__ == "__main__":
    sys.exit(main())
