"""Servers that are forks: `python -m prefect_mipro.server` after its imports, which take seconds.

They are done once, in a process with one thread and nothing open, of which each server is a fork:
a process with its own arguments, environment, output and end. `tests/server/test_main.py` and
`tests/plugin/test_embedded.py` start the command itself where the command is what they test.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

# What the command imports as it starts.
import prefect_mipro.server.app
import prefect_mipro.server.telemetry.exporters  # noqa: F401
from prefect_mipro.server.__main__ import main

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])


def forked(
    options: Sequence[str], environment: Mapping[str, str], *, stdout: Connection, stderr: str
) -> BaseProcess:
    """A server that is started already. Its standard error goes to the file of that name."""
    process = _forks.Process(target=_serve, args=(options, environment, stdout, stderr))
    process.start()
    return process


def _serve(
    options: Sequence[str], environment: Mapping[str, str], stdout: Connection, stderr: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(stdout.fileno(), sys.stdout.fileno())
    stdout.close()
    with open(stderr, "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.exit(main(options))
