"""What it costs to forget one person's data while calls come in.

    python -m benchmarks.forget                        # 10,000 rollouts, some minutes
    python -m benchmarks.forget --rollouts 1000        # to try it out
    python -m benchmarks.forget --postgres

A real server process answers and rewards the rollouts of twenty users in turn; demonstrations are
made of them. Then four connections call the session without a pause. After some seconds of
calls alone, the data of one user after the other is forgotten. Latencies are those of the calls
alone, and of the calls that began or ended while a request to forget was under way. At the end the
bars: no call failed, the counters are those of before, the export has nothing of those users, and
`db check` finds no fault.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.growth import database, faults_of
from prefect_mipro.client.clients import Client
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession, ForgetReport
from tests.end_to_end.conftest import CONFIG, BackendProcess
from tests.fake_upstream import FakeUpstream, better_with_demonstrations

SESSION_ID = "forgetful"
USERS = 20
CONNECTIONS = 4
WRITERS = 8
SECONDS_ALONE = 10.0
SECONDS_BETWEEN = 1.0


@dataclass
class Traffic:
    """Calls without a pause: when each began and ended, and which failed."""

    url: str
    calls: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=count)

    def run(self) -> None:
        with httpx.Client(timeout=60) as http:
            while not self._over.is_set():
                rollout_id, began = f"live-{next(self._numbers)}", time.monotonic()
                answer = http.post(
                    f"{self.url}/{rollout_id}/chat/completions", json=chat(f"live {rollout_id}")
                )
                self.calls.append((began, time.monotonic()))
                if answer.status_code != 200:
                    self.failures.append(answer.text[:200])

    def end(self) -> None:
        self._over.set()

    def milliseconds(self, spans: Sequence[tuple[float, float]]) -> list[float]:
        """How long the calls took that were under way in one of the spans."""
        return [
            1_000 * (ended - began)
            for began, ended in self.calls
            if any(began < until and ended > since for since, until in spans)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=5, help="how many are forgotten")
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL of its own")
    options = parser.parse_args(arguments)
    with database(postgres=options.postgres) as url:
        return measure(url, rollouts=options.rollouts, users=options.users)


def measure(database_url: str, *, rollouts: int, users: int) -> int:
    with (
        FakeUpstream(better_with_demonstrations) as upstream,
        BackendProcess("--database-url", database_url, "--upstream-url", upstream.url) as backend,
        Client(backend.url) as client,
    ):
        status = client.create_session(CreateSession(session_id=SESSION_ID, config_body=CONFIG))
        url = f"{backend.url}{urlsplit(status.online_url).path}"
        fill(url, backend.url, rollouts=rollouts)
        before = client.session_status(SESSION_ID)
        traffic = Traffic(url)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            running = [threads.submit(traffic.run) for _ in range(CONNECTIONS)]
            try:
                alone = time.monotonic(), time.monotonic() + SECONDS_ALONE
                time.sleep(SECONDS_ALONE)
                spans, reports = [], []
                for number in range(users):
                    began = time.monotonic()
                    reports.append(client.forget(SESSION_ID, user=user(number)))
                    spans.append((began, time.monotonic()))
                    time.sleep(SECONDS_BETWEEN)
            finally:
                traffic.end()
            for each in running:
                each.result()
        after = client.session_status(SESSION_ID)
        left = traces_of(backend.url, users=users)
    tell(traffic, alone, spans, reports)
    removed = sum(report.rollouts for report in reports)
    bars = {
        "every call was answered": not traffic.failures,
        "each user's rollouts are gone": removed == users * rollouts // USERS,
        "rollouts are those of before and the live ones": after.rollout_count
        == before.rollout_count + len(traffic.calls),
        "removed ones are counted": (after.removed_rollout_count or 0) == removed,
        "rewards stay counted": after.reward_count == before.reward_count,
        "the export has nothing of them": not left,
        "db check finds no fault": not asyncio.run(faults_of(database_url)),
    }
    for bar, passed in bars.items():
        print(f"{'PASS' if passed else 'FAIL'}  {bar}")
    for failure in traffic.failures[:3]:
        print(f"      {failure}")
    return 0 if all(bars.values()) else 1


def fill(url: str, backend_url: str, *, rollouts: int) -> None:
    """Answer and reward the rollouts of all users in turn."""
    reward_url = f"{backend_url}/api/v1/online/sessions/{SESSION_ID}/reward"
    numbers = iter(range(rollouts))
    lock = threading.Lock()

    def write() -> None:
        with httpx.Client(timeout=60) as http:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                said = f"{secret(number % USERS)} in ticket {number} #team{number % 7}"
                path = f"{url}/r{number}/chat/completions"
                answer = http.post(path, json=chat(said)).raise_for_status().json()
                right = answer["choices"][0]["message"]["content"] == f"team{number % 7}"
                body = RewardRequest(
                    rollout_id=f"r{number}",
                    reward_info={"score": float(right), "feedback": f"of {number}"},
                    metadata={"user": user(number % USERS)},
                    shareable=True,
                )
                http.post(reward_url, json=body.model_dump(mode="json")).raise_for_status()

    with ThreadPoolExecutor(WRITERS) as threads:
        for each in [threads.submit(write) for _ in range(WRITERS)]:
            each.result()


def chat(query: str) -> dict[str, object]:
    messages = [
        {"role": "system", "content": "You classify banking queries."},
        {"role": "user", "content": f"Query: {query}"},
    ]
    return {"model": "m", "messages": messages}


def user(number: int) -> str:
    return f"user-{number}"


def secret(number: int) -> str:
    """Words that only this user has written."""
    return f"the quiet harbour of {'abcdefghijklmnopqrst'[number] * 9} keeps its lanterns lit"


def tell(
    traffic: Traffic,
    alone: tuple[float, float],
    spans: Sequence[tuple[float, float]],
    reports: Sequence[ForgetReport],
) -> None:
    seconds = np.array([until - since for since, until in spans])
    error = seconds.std(ddof=1) / np.sqrt(len(seconds)) if len(seconds) > 1 else 0.0
    rollouts = [report.rollouts for report in reports]
    versions = [len(report.lever_versions) for report in reports]
    print(f"forgot {len(spans)} users of {min(rollouts)} to {max(rollouts)} rollouts each,")
    print(f"  with {min(versions)} to {max(versions)} lever versions that showed their texts")
    print(f"  in {seconds.mean():.2f} s (standard error {error:.2f})")
    for name, chosen in (("alone", [alone]), ("meanwhile", spans)):
        taken = traffic.milliseconds(chosen)
        p50, p99 = np.percentile(taken, [50, 99])
        print(
            f"calls {name:10} p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  "
            f"longest {max(taken):7.1f} ms  n {len(taken):,}"
        )


def traces_of(backend_url: str, *, users: int) -> int:
    """How many lines of the session's export name a forgotten user or hold their words."""
    path = f"{backend_url}/api/v1/online/sessions/{SESSION_ID}/export"
    words = [word for k in range(users) for word in (secret(k), f'"{user(k)}"')]
    with httpx.stream("GET", path, timeout=600) as answer:
        answer.raise_for_status()
        return sum(any(word in line for word in words) for line in answer.iter_lines())


if __name__ == "__main__":
    sys.exit(main())
