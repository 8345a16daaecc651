"""The systems of the benchmark that need nothing but this package: direct, bare, ours.

A system is a function that starts it beside a mock upstream and yields a `Gateway`: where to call
it, what its answers must look like, which processes to measure, how to check what it kept.
"""

from __future__ import annotations

import secrets
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import httpx

from benchmarks.gateways.payloads import SYSTEM_PROMPT, request_body
from benchmarks.gateways.processes import Child, NotStarted, child, free_port
from prefect_mipro.models.base import JsonObject

# Written within 50 ms of the answer, as the server promises; the rest is for a slow machine.
DURABLE_SECONDS = 2.0
REWARDED = 40
# Of each session, where there are many.
REWARDED_OF_MANY = 8
MAKERS = 8
INSTRUCTIONS = (
    "Decide which intent the message belongs to and name it first. Then give two sentences of "
    "reasons. Where several intents fit, take the one that would annoy the customer most.",
    "You sort messages to a bank by intent. Answer with one intent of the list, and justify it in "
    "two sentences that quote the message.",
    "Name the customer's main problem as one of the known intents. Say in two sentences which "
    "words led you there, and which other intent you have ruled out.",
    "Find out what the customer wants to be done, then choose the intent of whoever does it. "
    "Two sentences of reasons, no greeting.",
)
JSON = {"content-type": "application/json"}
CONFIG: JsonObject = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": SYSTEM_PROMPT},
                {"role": "user", "order": 1, "pattern": "{message}"},
            ]
        },
        "policy": {"model": "mock"},
        # The candidates are made by hand: the proposer would call the mock, and be counted.
        "mipro": {"mode": "online", "online_proposer_mode": "off"},
    }
}


@dataclass(frozen=True)
class Site:
    """What a system is started with: the mock's base URL, a folder of its own, the peers' venv."""

    upstream_url: str
    folder: Path
    peers_venv: Path | None = None

    def log(self, name: str) -> Path:
        """The file for the output of a process."""
        return self.folder / f"{name}.log"


@dataclass(frozen=True)
class Gateway:
    """A running system.

    `url` is that of chat completions; `{n}` in it is the number of the call; connections take it
    and the `other_urls` in turns. `with_sessions` makes as many sessions as it is told, once, and
    returns a URL with `{session}` for the number of one. `kept`, of a system that keeps records of
    its calls, takes the number of good and of failed answers and returns what is wrong with the
    records; the system may be of no more use after it.
    """

    url: str
    other_urls: tuple[str, ...] = ()
    with_sessions: Callable[[int], str] | None = None
    processes: tuple[int, ...] = ()
    database_processes: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = "mock"
    system_prompt: bool = True
    wanted_header: str = "content-type"
    same_bytes: bool = True
    version: str = ""
    kept: Callable[[int, int], Sequence[str]] | None = None

    def body(self, *, stream: bool) -> bytes:
        """The call for this system."""
        return request_body(self.model, stream=stream, system_prompt=self.system_prompt)


class NotInstalled(Exception):
    """A system that cannot be run here; the message says how it can."""


System = Callable[[Site], AbstractContextManager[Gateway]]


@contextmanager
def direct(site: Site) -> Iterator[Gateway]:
    """No gateway: the load generator calls the mock."""
    yield Gateway(f"{site.upstream_url}/chat/completions", wanted_header="x-request-id")


@contextmanager
def bare(site: Site) -> Iterator[Gateway]:
    """The pass-through of `benchmarks.gateways.bare`."""
    port = free_port()
    module = (sys.executable, "-m", "benchmarks.gateways.bare")
    options = ("--upstream", site.upstream_url, "--port", str(port))
    with child([*module, *options], log=site.log("bare")) as server:
        server.wait_for(f"http://127.0.0.1:{port}/health")
        yield Gateway(
            f"http://127.0.0.1:{port}/v1/chat/completions", processes=(server.process_id,)
        )


@contextmanager
def ours(site: Site, settings: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """The server with a key, a session made over HTTP, candidates and rewards, SQLite on disk.

    `settings` are further variables of its environment.
    """
    key = secrets.token_urlsafe(32)
    database = site.folder / "ours.db"
    environment = {
        "MIPRO_SERVER_API_KEYS": key,
        "MIPRO_SERVER_DATABASE_URL": f"sqlite:///{database}",
        "MIPRO_SERVER_UPSTREAM_URL": site.upstream_url,
        "MIPRO_SERVER_LOG_LEVEL": "warning",
        **(settings or {}),
    }
    options = ("--host", "127.0.0.1", "--port", "0", "--stop-with-stdin")
    command = (sys.executable, "-m", "prefect_mipro.server", *options)
    with child(command, log=site.log("ours"), environment=environment) as server:
        url = server.announced_url()
        server.wait_for(f"{url}/health")
        headers = {"authorization": f"Bearer {key}"}
        rewarded = 0

        def make(*session_ids: str, rewards: int) -> None:
            nonlocal rewarded
            with (
                httpx.Client(base_url=url, headers=headers, trust_env=False) as http,
                ThreadPoolExecutor(MAKERS) as makers,
            ):
                prepare = partial(prepared_session, http, rewards=rewards)
                rewarded += rewards * len(list(makers.map(prepare, session_ids)))

        @cache
        def with_sessions(number: int) -> str:
            make(*(f"many-{number}-{n}" for n in range(number)), rewards=REWARDED_OF_MANY)
            return proxied.format(f"many-{number}-{{session}}")

        try:
            make("one", rewards=REWARDED)
        except httpx.HTTPError as error:
            raise NotStarted(f"{error}; the end of its log:\n{server.tail()}") from None
        proxied = f"{url}/api/mipro/v1/{{}}/call_{{{{n}}}}/chat/completions"
        yield Gateway(
            proxied.format("one"),
            processes=(server.process_id,),
            headers=headers,
            wanted_header="x-mipro-candidate-id",
            with_sessions=with_sessions,
            kept=lambda answered, failed: _kept(server, database, answered, failed, rewarded),
        )


def prepared_session(
    http: httpx.Client, session_id: str | None = None, *, rewards: int = REWARDED
) -> str:
    """A session with candidates to choose from and rewards to choose by."""
    created = http.post(
        "/api/v1/online/sessions", json={"session_id": session_id, "config_body": CONFIG}
    )
    session_id = str(created.raise_for_status().json()["session_id"])
    for instruction in INSTRUCTIONS:
        added = {"instruction": instruction}
        http.post(f"/api/systems/{session_id}/candidates", json=added).raise_for_status()
    body = request_body("mock", stream=False)
    for number in range(rewards):
        rollout_id = f"rewarded_{number}"
        called = f"/api/mipro/v1/{session_id}/{rollout_id}/chat/completions"
        http.post(called, content=body, headers=JSON).raise_for_status()
        reward = {"rollout_id": rollout_id, "reward_info": {"score": number % 3 / 2}}
        http.post(f"/api/v1/online/sessions/{session_id}/reward", json=reward).raise_for_status()
    return session_id


def _kept(
    server: Child, database: Path, answered: int, failed: int, rewarded: int
) -> Sequence[str]:
    """What is missing in the database once the server was killed, so that it could tidy nothing."""
    time.sleep(DURABLE_SECONDS)
    server.stop(signal.SIGKILL)
    expected = answered + rewarded
    complaints = []
    with closing(sqlite3.connect(database)) as connection:

        def number(query: str) -> int:
            return int(connection.execute(query).fetchone()[0])

        for table in ("rollouts", "traces"):
            found = number(f"SELECT count(*) FROM mipro_{table}")
            # A call that failed for the caller may have been served.
            if not expected <= found <= expected + failed:
                complaints.append(f"{found:,} {table} are kept of {expected:,} calls answered")
        served = number("SELECT count(DISTINCT candidate_id) FROM mipro_rollouts")
        unapplied = number("SELECT count(*) FROM mipro_traces WHERE unapplied_reason != ''")
        if served < 2:
            complaints.append(f"{served} candidate served all calls")
        if unapplied:
            complaints.append(f"{unapplied:,} calls did not get the candidate's prompt")
    return complaints
