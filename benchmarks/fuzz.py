"""Send the server everything its OpenAPI schema allows, and all that it does not.

    python -m benchmarks.fuzz --examples 200

A real server process on a SQLite file gets calls that schemathesis makes up: boundary values,
random ones, chains of calls, all with ids of real sessions among random ones. Every answer is
checked: no 5xx, a status and a body that the schema tells, no success for what it forbids, nothing
without a key. The harness is the test suite's, `tests/bad_input/fuzzing.py`. Exit code 1 at any
failure.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence

import httpx

from tests.bad_input.fuzzing import PHASES, Findings, fuzz, settle
from tests.end_to_end.conftest import BackendProcess
from tests.server.scripted_upstream import ScriptedUpstream

KEY = "a-key-of-the-benchmark"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=200, help="random calls of each operation")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    findings = run(examples=options.examples, seed=options.seed, phases=options.phases)
    statuses = ", ".join(f"{n:,} x {status}" for status, n in sorted(findings.statuses.items()))
    print(f"{findings.calls:,} calls in {time.monotonic() - began:.0f} s: {statuses}")
    for (operation, check), told in findings.failures.items():
        print(f"FAIL {operation}, {check}\n  {told}")
    if not findings.failures:
        print(f"PASS every answer is as the schema says (seed {options.seed})")
    return 1 if findings.failures else 0


def run(*, examples: int, seed: int, phases: Sequence[str]) -> Findings:
    """What a server process made of it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedUpstream() as upstream,
        BackendProcess(
            MIPRO_SERVER_API_KEYS=KEY,
            MIPRO_SERVER_DATABASE_URL=f"sqlite:///{folder}/mipro.db",
            MIPRO_SERVER_UPSTREAM_URL=upstream.url,
        ) as backend,
        httpx.Client(
            base_url=backend.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20
        ) as http,
    ):
        known = settle(http)
        return fuzz(backend.url, key=KEY, known=known, examples=examples, seed=seed, phases=phases)


if __name__ == "__main__":
    sys.exit(main())
