"""Processes of Prefect's own, such as a worker, and waiting for what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LONGEST_WAIT_SECONDS = 240


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
        )
    try:
        yield
    except TimeoutError:
        pytest.fail(f"prefect {' '.join(arguments)} says:\n{log.read_text('utf-8')}")
    finally:
        process.terminate()
        # Its last requests may have to wait for Prefect's SQLite file: up to a minute each.
        process.wait(LONGEST_WAIT_SECONDS)


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it is no longer nothing."""
    pause = threading.Event()
    for _ in range(LONGEST_WAIT_SECONDS * 4):
        if found := condition():
            return found
        pause.wait(0.25)
    raise TimeoutError
