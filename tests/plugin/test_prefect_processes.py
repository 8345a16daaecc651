"""Processes of Prefect's end when a test is done with them, by force if need be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.plugin.prefect_processes import end

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def test_a_process_that_does_not_end_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        end(process, patience_seconds=0.1)
    assert process.returncode == -9
    assert f"killing process {process.pid}" in caplog.text
