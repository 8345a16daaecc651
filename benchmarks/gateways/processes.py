"""Child processes of the benchmark: started, found on their ports, measured, ended. Linux only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
START_SECONDS = 120.0
STOP_SECONDS = 10.0
TAIL_LINES = 15
QUOTA_PERIOD_MICROSECONDS = 100_000
LOOPBACK = "http://127.0.0.1:"


class NotStarted(Exception):
    """A system that is installed did not come up; the message holds the end of its log."""


class Child:
    """One child process in a group of its own, its output in a file."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.process_id = popen.pid
        self._popen = popen
        self._log = log

    def announced_url(self) -> str:
        """The first URL of this machine in its output. Raises NotStarted."""

        def urls() -> list[str]:
            return [word for word in self.output().split() if word.startswith(LOOPBACK)]

        self.wait_until(lambda: bool(urls()), "told no URL")
        return urls()[0]

    def wait_for(self, url: str) -> None:
        """Until a GET of that URL answers with success. Raises NotStarted."""

        def answers() -> bool:
            try:
                return http.get(url).is_success
            except httpx.TransportError:
                return False

        with httpx.Client(trust_env=False, timeout=5.0) as http:
            self.wait_until(answers, f"did not answer at {url}")

    def wait_until(self, ready: Callable[[], bool], complaint: str) -> None:
        """Ask again and again. Raises NotStarted when it has ended, or never becomes ready."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline or self._popen.poll() is not None:
                raise NotStarted(f"{complaint}; the end of its output:\n{self.tail()}")
            time.sleep(0.05)

    def wait(self) -> None:
        """Until it has ended by itself, with success. Raises NotStarted."""
        if self._popen.wait(START_SECONDS):
            raise NotStarted(f"exit code {self._popen.returncode}:\n{self.tail()}")

    def output(self) -> str:
        """All that it has printed so far."""
        return self._log.read_text(errors="replace")

    def tail(self) -> str:
        """The end of its output."""
        lines = self.output().splitlines()
        return "\n".join(line[:300] for line in lines[-TAIL_LINES:])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with all its children. Safe to call again."""
        for each in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process_id, each)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_SECONDS)


@contextmanager
def child(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
    stop_with: signal.Signals = signal.SIGTERM,
) -> Iterator[Child]:
    """Run a command for the length of a `with` block, as that user where one is named."""
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            user=user,
            cwd=cwd,
        )
    running = Child(popen, log)
    try:
        yield running
    finally:
        running.stop(stop_with)
        if popen.stdin:
            popen.stdin.close()


@contextmanager
def limited(process_id: int, cores: float) -> Iterator[None]:
    """Give a process no more than that share of the machine's cores, by a control group of its own.

    Raises OSError where that is not allowed, or where the kernel has no such groups.
    """
    old = Path("/sys/fs/cgroup/cpu")
    group = (old if old.is_dir() else old.parent) / f"mipro-benchmark-{process_id}"
    group.mkdir()
    try:
        if old.is_dir():
            (group / "cpu.cfs_quota_us").write_text(str(int(cores * QUOTA_PERIOD_MICROSECONDS)))
        else:
            quota = f"{int(cores * QUOTA_PERIOD_MICROSECONDS)} {QUOTA_PERIOD_MICROSECONDS}"
            (group / "cpu.max").write_text(quota)
        (group / "cgroup.procs").write_text(str(process_id))
        yield
    finally:
        with suppress(OSError):
            (group.parent / "cgroup.procs").write_text(str(process_id))
        group.rmdir()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def tree(roots: Iterable[int]) -> set[int]:
    """These processes and all that they started."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children[int(fields[1])].append(int(folder.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        process_id = waiting.pop()
        found.add(process_id)
        waiting += children[process_id]
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time of these processes and their children so far, ended ones too, in both modes."""
    ticks = 0
    for process_id in tree(roots):
        if fields := _stat(process_id):
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_PER_SECOND


def machine_cpu_seconds() -> float:
    """CPU time of everything on this machine since it started, idling and waiting left out."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_SECOND


def memory_mb(roots: Iterable[int]) -> float:
    """Resident memory of these processes and their children now."""
    pages = sum(
        int(fields[21]) for process_id in tree(roots) if (fields := _stat(process_id)) is not None
    )
    return pages * PAGE_BYTES / 1e6


def descriptors(process_id: int) -> int:
    """Open files and connections of a process now."""
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))


def peak_memory_mb(roots: Iterable[int]) -> float:
    """The sum of the largest resident memory that each of them ever had."""
    kilobytes = 0
    for process_id in tree(roots):
        with suppress(OSError):
            for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    kilobytes += int(line.split()[1])
    return kilobytes * 1_024 / 1e6


def _stat(process_id: int) -> list[str] | None:
    """The fields of its stat file from the third on: the name before may hold anything."""
    with suppress(OSError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return None
