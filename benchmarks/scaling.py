"""One server process and two on one PostgreSQL: throughput, where the CPU goes, what a call costs.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --rounds 1 --seconds 2       # to try it out

A real PostgreSQL 18 with its own defaults (so each commit waits for the disk; its programs come
with the development dependencies), two server processes with a key, a mock upstream and a load
generator, each a process of its own. 64 connections call one session, or sixteen, through one of
the servers or through both. Each call begins a rollout: its pin is committed before the model is
asked, its trace and its sensors within 50 ms.

On two cores the second process competes with the database, the mock and the load generator for
them. So everything is measured twice: with all that the machine has, and with servers that get a
share of a core each (0.25), where the second brings cores of its own, as another machine would.
That takes a control group, so root; without, it is left out, and said.

Then 320 rewards from sixteen reporters, through both servers, for one session and for sixteen.
Exit code 1 when a bar is missed. Needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import httpx
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.gateways.cells import Cell, Instruments, Subject, instruments, median
from benchmarks.gateways.payloads import request_body
from benchmarks.gateways.processes import Child, child, cpu_seconds, limited
from benchmarks.gateways.report import Bar
from benchmarks.gateways.systems import JSON, Gateway, prepared_session
from tests.postgres import Postgres

KEY = secrets.token_hex(32)
SESSIONS = 16
CONNECTIONS = 64
REWARDS = 320
REPORTERS = 16
SHARE = 0.25
# What was put off until after the answers is written by then.
REST_SECONDS = 1.0
DEFAULTS = {
    "fsync": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "shared_buffers": "128MB",
}
LEAST_RATIO = 1.7
MOST_TIMES_CPU = 1.25

FACTS = text("""
    SELECT pg_stat_force_next_flush() IS NULL,
      (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
      (SELECT sessions FROM pg_stat_database WHERE datname = current_database()),
      (SELECT sum(n_tup_ins) FROM pg_stat_user_tables),
      (SELECT sum(n_tup_upd) FROM pg_stat_user_tables),
      pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0'),
      pg_database_size(current_database())
""")


@dataclass(frozen=True)
class Work:
    """What a database has done."""

    commits: float
    connections: float
    rows: float
    updates: float
    wal_bytes: float
    size_bytes: float

    @classmethod
    def so_far(cls, url: str) -> Self:
        """Statistics reach the tables when a session ends or is idle: the servers are at rest."""

        async def ask() -> Self:
            engine = create_async_engine(url, poolclass=NullPool)
            async with engine.connect() as connection:
                _, *facts = (await connection.execute(FACTS)).one()
            await engine.dispose()
            return cls(*map(float, facts))

        return asyncio.run(ask())

    def since(self, earlier: Work, *, per: float) -> Work:
        """What was done since then, for each of so many calls."""
        return Work(
            *(
                (getattr(self, field.name) - getattr(earlier, field.name)) / per
                for field in fields(self)
            )
        )

    def __str__(self) -> str:
        return (
            f"{self.commits:.2f} commits, {self.connections:.3f} new connections, "
            f"{self.rows:.1f} rows and {self.updates:.2f} updates, "
            f"{self.wal_bytes:,.0f} bytes of WAL, {self.size_bytes:,.0f} bytes more on disk"
        )


@dataclass(frozen=True)
class Setting:
    """Through how many servers how many sessions are called, and with which cores."""

    share: float | None
    sessions: int
    servers: int

    def __str__(self) -> str:
        cores = f"{self.share:g} of a core each" if self.share else "all cores"
        sessions = "1 session" if self.sessions == 1 else f"{self.sessions} sessions"
        return f"{self.servers} server{'s' * (self.servers > 1)}, {sessions}, {cores}"


@dataclass(frozen=True)
class Row:
    """One measurement. CPU in microseconds for each call."""

    calls_per_second: float
    p99_ms: float
    server_cpu: float
    database_cpu: float
    tools_cpu: float
    work: Work


class Site:
    """The servers, their database and their sessions."""

    def __init__(self, servers: Sequence[tuple[Child, str]], postgres: Postgres, url: str) -> None:
        self._servers = servers
        self._postgres = postgres
        self.database_url = url
        self.headers = {"authorization": f"Bearer {KEY}"}
        with self.http() as http:
            self._sessions = [prepared_session(http) for _ in range(SESSIONS)]

    @property
    def server_ids(self) -> tuple[int, ...]:
        return tuple(server.process_id for server, _ in self._servers)

    @property
    def database_ids(self) -> tuple[int, ...]:
        return (self._postgres.process_id,)

    def http(self, server: int = 0) -> httpx.Client:
        """A client of one of the servers."""
        url = self._servers[server][1]
        return httpx.Client(base_url=url, headers=self.headers, trust_env=False, timeout=60.0)

    def subject(self, setting: Setting) -> Subject:
        """To be called through so many servers, in so many sessions."""
        first, *others = (
            f"{url}/api/mipro/v1/{session_id}/{secrets.token_hex(4)}_{{n}}/chat/completions"
            for session_id in self._sessions[: setting.sessions]
            for _, url in self._servers[: setting.servers]
        )
        gateway = Gateway(
            first,
            other_urls=tuple(others),
            processes=self.server_ids,
            database_processes=self.database_ids,
            headers=self.headers,
            wanted_header="x-mipro-candidate-id",
        )
        return Subject(str(setting), gateway)

    def rewards(self, sessions: int) -> tuple[float, Work]:
        """How many rewards a second both servers take, and what one costs the database."""
        body = request_body("mock", stream=False)
        pairs = [
            (self._sessions[number % sessions], f"late_{sessions}_{number}")
            for number in range(REWARDS)
        ]

        def call(number: int) -> None:
            session_id, rollout_id = pairs[number]
            path = f"/api/mipro/v1/{session_id}/{rollout_id}/chat/completions"
            clients[number % 2].post(path, content=body, headers=JSON).raise_for_status()

        def reward(number: int) -> None:
            session_id, rollout_id = pairs[number]
            report = {"rollout_id": rollout_id, "reward_info": {"score": number % 3 / 2}}
            path = f"/api/v1/online/sessions/{session_id}/reward"
            clients[number % 2].post(path, json=report).raise_for_status()

        with ExitStack() as stack:
            clients = [stack.enter_context(self.http(server)) for server in (0, 1)]
            pool = stack.enter_context(ThreadPoolExecutor(REPORTERS))
            list(pool.map(call, range(REWARDS)))
            time.sleep(REST_SECONDS)
            earlier, began = Work.so_far(self.database_url), time.perf_counter()
            list(pool.map(reward, range(REWARDS)))
            rate = REWARDS / (time.perf_counter() - began)
        time.sleep(REST_SECONDS)
        return rate, Work.so_far(self.database_url).since(earlier, per=REWARDS)


@contextmanager
def site(tools: Instruments, folder: Path) -> Iterator[Site]:
    """Everything runs for the length of a `with` block."""
    with Postgres(**DEFAULTS) as postgres, postgres.new_database() as url, ExitStack() as running:
        environment = {
            "MIPRO_SERVER_API_KEYS": KEY,
            "MIPRO_SERVER_DATABASE_URL": url,
            "MIPRO_SERVER_UPSTREAM_URL": tools.upstream_url,
            "MIPRO_SERVER_LOG_LEVEL": "warning",
        }
        servers = []
        for number in (1, 2):
            options = ("--host", "127.0.0.1", "--port", "0", "--stop-with-stdin")
            server = running.enter_context(
                child(
                    (sys.executable, "-m", "prefect_mipro.server", *options),
                    log=folder / f"server-{number}.log",
                    environment=environment,
                )
            )
            servers.append((server, server.announced_url()))
            server.wait_for(f"{servers[-1][1]}/health")
        yield Site(servers, postgres, url)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--share", type=float, default=SHARE, help="of a core, for each server")
    options = parser.parse_args(arguments)
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}; "
        f"{options.rounds} rounds of {options.seconds:g} s"
    )
    rows: dict[Setting, list[Row]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="mipro-scaling-") as folder,
        instruments() as tools,
        site(tools, Path(folder)) as found,
    ):
        shares = _shares(found, options.share)
        for _ in range(options.rounds):
            for share in shares:
                for sessions in (1, SESSIONS):
                    for servers in (1, 2):
                        setting = Setting(share, sessions, servers)
                        row = measure(tools, found, setting, seconds=options.seconds)
                        rows[setting].append(row)
                        print(_line(setting, [row]), flush=True)
        rewards = {sessions: found.rewards(sessions) for sessions in (1, SESSIONS)}
    print("\nmedians")
    for setting, measured in rows.items():
        print(_line(setting, measured))
    calls = [row.work for measured in rows.values() for row in measured]
    print(f"\na call: {_middle(calls)}")
    for sessions, (rate, work) in rewards.items():
        print(f"a reward, sessions {sessions}: {rate:,.0f} rewards/s through two servers; {work}")
    bars = list(_bars(rows))
    for bar in bars:
        print(bar)
    return 0 if all(bar.kept for bar in bars) else 1


def measure(tools: Instruments, site: Site, setting: Setting, *, seconds: float) -> Row:
    """Calls for so long."""
    subject = site.subject(setting)
    with ExitStack() as limits:
        tools.warm_up(subject)
        if setting.share:
            for process_id in site.server_ids:
                limits.enter_context(limited(process_id, setting.share))
        earlier = Work.so_far(site.database_url)
        places = (site.server_ids, site.database_ids, tools.processes)
        used = [cpu_seconds(processes) for processes in places]
        cell = Cell("scaling", CONNECTIONS)
        outcome = tools.measure(subject, cell, number=0, seconds=seconds).outcome
        if outcome.failures:
            raise RuntimeError(f"{setting}: {outcome.failures}")
        server, database, tool = (
            1e6 * (cpu_seconds(processes) - before) / outcome.answered
            for processes, before in zip(places, used, strict=True)
        )
        return Row(
            calls_per_second=outcome.calls / outcome.seconds,
            p99_ms=1e3 * outcome.latency_p99,
            server_cpu=server,
            database_cpu=database,
            tools_cpu=tool,
            work=Work.so_far(site.database_url).since(earlier, per=outcome.answered),
        )


def _shares(site: Site, share: float) -> list[float | None]:
    try:
        with limited(site.server_ids[0], share):
            return [None, share]
    except OSError as error:
        print(f"servers with a share of a core are left out: {error}")
        return [None]


def _line(setting: Setting, rows: Sequence[Row]) -> str:
    def of(name: str) -> float:
        return median([getattr(row, name) for row in rows])

    commits = median([row.work.commits for row in rows])
    return (
        f"{setting!s:44}{of('calls_per_second'):7,.0f} calls/s, p99 {of('p99_ms'):5,.0f} ms; "
        f"a call: {of('server_cpu'):5,.0f} us of the servers, {of('database_cpu'):5,.0f} us of the "
        f"database, {of('tools_cpu'):4,.0f} us of mock and load, {commits:.2f} commits"
    )


def _middle(works: Sequence[Work]) -> Work:
    return Work(*(median([getattr(work, field.name) for work in works]) for field in fields(Work)))


def _bars(rows: Mapping[Setting, Sequence[Row]]) -> Iterator[Bar]:
    for two, measured in rows.items():
        if two.servers == 1:
            continue
        one = rows[Setting(two.share, two.sessions, 1)]
        pairs = list(zip(one, measured, strict=True))
        ratio = median([b.calls_per_second / a.calls_per_second for a, b in pairs])
        cpu = median([b.server_cpu / a.server_cpu for a, b in pairs])
        named = str(two).removeprefix("2 servers, ")
        if two.share:
            yield Bar(
                ratio >= LEAST_RATIO,
                f"{named}: two processes do at least {LEAST_RATIO:g} times the calls of one",
                f"{ratio:.2f}",
            )
        else:
            of_all = [row.server_cpu + row.database_cpu + row.tools_cpu for row in measured]
            room = 1e6 * (os.cpu_count() or 1) / median(of_all)
            possible = room / median([row.calls_per_second for row in one])
            print(
                f"      {named}: two processes do {ratio:.2f} times the calls of one; this machine "
                f"has CPU for {possible:.2f} times"
            )
        yield Bar(
            cpu <= MOST_TIMES_CPU,
            f"{named}: sharing costs the servers at most {MOST_TIMES_CPU:g} times the CPU",
            f"{cpu:.2f}",
        )


if __name__ == "__main__":
    sys.exit(main())
