"""The load generator: as many calls as so many connections can have answered, each one checked.

    python -m benchmarks.gateways.load

reads one `Job` as JSON per line of standard input, and answers each with a line of JSON, an
`Outcome`. It runs as a process of its own, so that nobody's CPU time but its own is in it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from time import perf_counter
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.gateways.payloads import EVENTS, answer, events

# However slow a system is: what is not answered by then never will be.
LONGEST_CALL_SECONDS = 60.0
END_OF_STREAM = b"data: [DONE]"


@dataclass(frozen=True)
class Job:
    """What to send to whom, and for how long: for `seconds`, or until `calls` were answered.

    `{n}` in the URL is the number of the call, counted from `first_call`, and `{session}` that
    number modulo `sessions`. Connections take the URL and the `others` in turns. An answer is good
    when it has status 200, `wanted_header` and the mock's words, and ends; where `same_bytes` is
    set its body must be the mock's, byte for byte.
    """

    url: str
    headers: Mapping[str, str]
    body: str
    connections: int
    stream: bool
    wanted_header: str
    same_bytes: bool
    first_call: int = 0
    warm_up_seconds: float = 0.0
    seconds: float | None = None
    calls: int | None = None
    others: Sequence[str] = ()
    sessions: int = 1


@dataclass(frozen=True)
class Target:
    """Where a connection leads, and what is sent there before and after the call's number."""

    host: str
    port: int
    head: bytes
    tail: bytes
    numbered: bool

    @classmethod
    def of(cls, url: str, job: Job) -> Self:
        parts = urlsplit(url)
        head, _, tail = url.partition("{n}")
        origin = f"{parts.scheme}://{parts.netloc}"
        body = job.body.encode()
        headers = {
            "host": parts.netloc,
            "content-type": "application/json",
            "accept-encoding": "identity",
            "content-length": str(len(body)),
            **job.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return cls(
            host=str(parts.hostname),
            port=int(parts.port or 80),
            head=f"POST {head.removeprefix(origin)}".encode(),
            tail=f"{tail} HTTP/1.1\r\n{lines}\r\n".encode() + body,
            numbered=head != url,
        )


@dataclass(frozen=True)
class Outcome:
    """How it went. Times in seconds; percentiles of the calls after the warm-up.

    `answered` counts all good answers, those of the warm-up too; `failures` the others by reason.
    """

    answered: int
    calls: int
    seconds: float
    latency_p50: float
    latency_p99: float
    first_byte_p50: float
    first_byte_p99: float
    failures: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, line: str) -> Self:
        """From the line that the load generator writes."""
        return cls(**json.loads(line))


class Load:
    """One job under way."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.answered = 0
        self.failures: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.wanted_header = job.wanted_header.encode()
        self.expected = b"".join(events()) if job.stream else answer()
        self._targets = cycle(Target.of(url, job) for url in (job.url, *job.others))
        self._number = job.first_call
        self._open = 0
        self._done = asyncio.Event()
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        """Send until the time is over, then wait for what is under way."""
        job = self.job
        self._began = perf_counter()
        self._measured_from = self._began + job.warm_up_seconds
        self._until = self._measured_from + (job.seconds or float("inf"))
        for _ in range(job.connections):
            self.connect()
        limit = job.warm_up_seconds + (job.seconds or (job.calls or 0) / 10) + LONGEST_CALL_SECONDS
        try:
            await asyncio.wait_for(self._done.wait(), limit)
        except TimeoutError:
            self.failures["no answer in time"] += self._open
        ended = min(perf_counter(), self._until)
        latencies, first_bytes = sorted(self.latencies), sorted(self.first_bytes)
        return Outcome(
            answered=self.answered,
            calls=len(latencies),
            seconds=ended - self._measured_from,
            latency_p50=_percentile(latencies, 0.5),
            latency_p99=_percentile(latencies, 0.99),
            first_byte_p50=_percentile(first_bytes, 0.5),
            first_byte_p99=_percentile(first_bytes, 0.99),
            failures=dict(self.failures),
        )

    def connect(self) -> None:
        """Open one more connection, which sends at once."""
        self._open += 1
        connecting = asyncio.create_task(self._connect())
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    def request(self, target: Target) -> bytes:
        """The bytes of the next call."""
        if not target.numbered:
            return target.head + target.tail
        self._number += 1
        head = target.head
        if self.job.sessions > 1:
            head = head.replace(b"{session}", b"%d" % (self._number % self.job.sessions))
        return b"%b%d%b" % (head, self._number, target.tail)

    def goes_on(self) -> bool:
        """Whether a connection that is free shall send another."""
        if self.job.calls is not None:
            return self.answered + self._open <= self.job.calls
        return perf_counter() < self._until

    def answer(self, began: float, first_byte: float, ended: float) -> None:
        """Count a good answer."""
        self.answered += 1
        if self._measured_from <= ended <= self._until:
            self.latencies.append(ended - began)
            self.first_bytes.append(first_byte - began)

    def closed(self) -> None:
        """One connection fewer."""
        self._open -= 1
        if not self._open:
            self._done.set()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            target = next(self._targets)
            await loop.create_connection(lambda: Connection(self, target), target.host, target.port)
        except OSError as error:
            self.failures[f"cannot connect: {error.strerror}"] += 1
            self.closed()


class Connection(asyncio.Protocol):
    """A kept-alive connection: one call after the other."""

    def __init__(self, load: Load, target: Target) -> None:
        self._load = load
        self._target = target
        self._parser = httptools.HttpResponseParser(self)
        self._waiting = False
        self._has_header = False
        self._body: list[bytes] = []
        self._began = self._arrived = self._first_byte = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._load.failures["connection lost"] += 1
        if self._load.goes_on():
            self._load.connect()
        self._load.closed()

    def data_received(self, data: bytes) -> None:
        if not self._first_byte:
            self._arrived = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._load.failures[f"not HTTP: {type(error).__name__}"] += 1
            self._waiting = False
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == self._load.wanted_header:
            self._has_header = True

    def on_body(self, body: bytes) -> None:
        if not self._first_byte:
            self._first_byte = self._arrived
        self._body.append(body)

    def on_message_complete(self) -> None:
        ended = perf_counter()
        self._waiting = False
        fault = self._fault(b"".join(self._body))
        if fault:
            self._load.failures[fault] += 1
        else:
            self._load.answer(self._began, self._first_byte, ended)
        if self._load.goes_on() and self._parser.should_keep_alive():
            self._send()
        else:
            self._transport.close()

    def _fault(self, body: bytes) -> str | None:
        status = self._parser.get_status_code()
        if status != 200:
            return f"status {status}: {body[:120].decode(errors='replace')}"
        if not self._has_header:
            return f"no header {self._load.job.wanted_header}"
        if self._load.job.same_bytes:
            return None if body == self._load.expected else f"another body: {body[:120]!r}"
        if self._load.job.stream:
            whole = END_OF_STREAM in body and body.count(b"data: ") >= EVENTS
        else:
            whole = b"transaction_charged_twice" in body
        return None if whole else f"another body: {body[:120]!r}"

    def _send(self) -> None:
        self._body = []
        self._has_header = False
        self._first_byte = 0.0
        self._waiting = True
        self._began = perf_counter()
        self._transport.write(self._load.request(self._target))


def _percentile(values: Sequence[float], share: float) -> float:
    return values[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


def main() -> None:
    """Work through the jobs on standard input."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            told: dict[str, Any] = json.loads(line)
            outcome = runner.run(Load(Job(**told)).run())
            print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
