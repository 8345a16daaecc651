"""Processes of Prefect's own, such as a worker, and waiting for what they do."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LONGEST_WAIT_SECONDS = 240
logger = logging.getLogger(__name__)

# How long a process may take to end before it is ended by force.
END_SECONDS = 20


@contextmanager
def running(*arguments: str, log: Path, **environment: str) -> Iterator[None]:
    """`prefect` with these arguments, beside its log. Who waits in vain is shown the log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env={**os.environ, **environment},
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    except TimeoutError:
        pytest.fail(f"prefect {' '.join(arguments)} says:\n{log.read_text('utf-8')}")
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], *, patience_seconds: float = END_SECONDS) -> None:
    """Terminate Prefect's process; kill it and its children if it takes too long.

    How fast Prefect's own process ends is not ours to test.
    """
    process.terminate()
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        logger.warning("killing process %s, alive after SIGTERM", process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it is no longer nothing."""
    pause = threading.Event()
    for _ in range(LONGEST_WAIT_SECONDS * 4):
        if found := condition():
            return found
        pause.wait(0.25)
    raise TimeoutError
