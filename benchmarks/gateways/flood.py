"""A load generator that does not wait: calls come at a rate, whatever becomes of those before them.

    python -m benchmarks.gateways.flood

reads one `Plan` as JSON from standard input and prints a `Second` as JSON for each second of it,
and one more when the last answers are in. Each call begins a rollout of its own; some are streams,
some answers earn a reward, which is sent on the same connections.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.gateways.payloads import request_body

TICK_SECONDS = 0.005
LAST_ANSWERS_SECONDS = 30.0
MARK = b"transaction_charged_twice"
END_OF_STREAM = b"data: [DONE]"


@dataclass(frozen=True)
class Plan:
    """Calls per second and seconds of each phase, on at most so many connections.

    `{n}` in the URL is the number of the call. Every `stream_every`th is a stream; every
    `reward_every`th that was answered earns a reward, posted to `reward_url`.
    """

    url: str
    reward_url: str
    headers: Mapping[str, str]
    phases: Sequence[tuple[float, float]]
    most_connections: int
    first_call: int
    stream_every: int = 10
    reward_every: int = 5

    def due(self, passed_seconds: float) -> int:
        """How many calls should have been sent by then."""
        calls = 0.0
        for rate, seconds in self.phases:
            calls += rate * min(max(passed_seconds, 0.0), seconds)
            passed_seconds -= seconds
        return int(calls)


@dataclass
class Second:
    """What was answered in a second of the plan.

    `refused` had status 429 and a Retry-After, `unsent` found all connections busy, `faults` are
    all other answers by reason. Latencies are those of good answers, in seconds.
    """

    number: int
    good: int = 0
    refused: int = 0
    unsent: int = 0
    rewards: int = 0
    refused_rewards: int = 0
    latencies: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    @classmethod
    def parse(cls, line: str) -> Self:
        """From the line that the generator prints."""
        told = json.loads(line)
        return cls(**{**told, "faults": Counter(told["faults"])})


class Flood:
    """One plan under way."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.second = Second(0)
        self.idle: list[Connection] = []
        self.open = 0
        self.waiting = 0
        parts = urlsplit(plan.url)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self._number = plan.first_call
        self._rewards: deque[bytes] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._bodies = [request_body("mock", stream=stream) for stream in (False, True)]

    async def run(self) -> None:
        """Print a line a second."""
        length = sum(seconds for _, seconds in self.plan.phases)
        began = perf_counter()
        sent = 0
        while (passed := perf_counter() - began) < length:
            if int(passed) > self.second.number:
                self._tell(int(passed))
            while self._rewards and self._one_more():
                pass
            for _ in range(self.plan.due(passed) - sent):
                sent += 1
                if not self._one_more():
                    self.second.unsent += 1
            await asyncio.sleep(TICK_SECONDS)
        deadline = perf_counter() + LAST_ANSWERS_SECONDS
        while (self.waiting or self._connecting or self._rewards) and perf_counter() < deadline:
            while self._rewards and self._one_more():
                pass
            await asyncio.sleep(TICK_SECONDS)
        if self.waiting:
            self.second.faults["no answer in time"] += self.waiting
        self._tell(int(length) + 1)

    def request(self) -> tuple[bytes, int]:
        """The next reward that is due, or the next call and its number; 0 for a reward."""
        if self._rewards:
            return self._rewards.popleft(), 0
        self._number += 1
        stream = self._number % self.plan.stream_every == 0
        url = self.plan.url.replace("{n}", str(self._number))
        return self._post(url, self._bodies[stream]), self._number

    def answered(self, number: int, seconds: float, status: int, retry: bool, body: bytes) -> None:
        """Count an answer, and send the reward of a good one."""
        second = self.second
        if status == 429 and retry:
            second.refused += number > 0
            second.refused_rewards += number == 0
        elif status != 200:
            second.faults[f"status {status}: {body[:200].decode(errors='replace')}"] += 1
        elif number == 0:
            second.rewards += 1
        elif not self._whole(number, body):
            second.faults[f"half an answer: {body[-100:]!r}"] += 1
        else:
            second.good += 1
            second.latencies.append(round(seconds, 5))
            if number % self.plan.reward_every == 0:
                self._rewards.append(self._reward(number))

    def _whole(self, number: int, body: bytes) -> bool:
        return (END_OF_STREAM if number % self.plan.stream_every == 0 else MARK) in body

    def _one_more(self) -> bool:
        """Send on a free connection, or on one that is opened now; whether there is one."""
        if self.idle:
            self.idle.pop().send()
        elif self.open < self.plan.most_connections:
            self.open += 1
            connecting = asyncio.create_task(self._connect())
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        else:
            return False
        return True

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: Connection(self), self.host, self.port)
        except OSError as error:
            self.open -= 1
            self.second.faults[f"cannot connect: {error.strerror}"] += 1

    def _reward(self, number: int) -> bytes:
        rollout_id = self.plan.url.rsplit("/", 3)[1].replace("{n}", str(number))
        body = {"rollout_id": rollout_id, "reward_info": {"score": number % 3 / 2}}
        return self._post(self.plan.reward_url, json.dumps(body).encode())

    def _post(self, url: str, body: bytes) -> bytes:
        headers = {
            "host": f"{self.host}:{self.port}",
            "content-type": "application/json",
            "accept-encoding": "identity",
            "content-length": str(len(body)),
            **self.plan.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {urlsplit(url).path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def _tell(self, number: int) -> None:
        # asdict would count the pairs of a Counter.
        told = {**vars(self.second), "faults": dict(self.second.faults)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        self.second = Second(number)


class Connection(asyncio.Protocol):
    """A kept-alive connection: one request at a time, and then it is free."""

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self.send()

    def send(self) -> None:
        """The next reward or call."""
        request, self._number = self._flood.request()
        self._body: list[bytes] = []
        self._retry = False
        self._waiting = True
        self._flood.waiting += 1
        self._began = perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit():
            self._retry = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._waiting = False
        self._flood.waiting -= 1
        seconds = perf_counter() - self._began
        status = self._parser.get_status_code()
        self._flood.answered(self._number, seconds, status, self._retry, b"".join(self._body))
        if self._parser.should_keep_alive():
            self._flood.idle.append(self)
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        flood = self._flood
        flood.open -= 1
        if self in flood.idle:
            flood.idle.remove(self)
        if self._waiting:
            flood.waiting -= 1
            flood.second.faults["connection lost"] += 1


def main() -> None:
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Flood(Plan(**told)).run())


if __name__ == "__main__":
    main()
