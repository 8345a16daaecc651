"""Kill the server at random moments, and look for what is lost or counted twice.

    python -m benchmarks.crash --kills 300

Six programs call a real server on a SQLite file, reward their rollouts, some of them twice, and add
candidates. After a random number of answers the process gets a SIGKILL. Then the file is compared
with what the programs were told, and each counter in it with the facts that it counts. The harness
is the test suite's, `tests/end_to_end/crashes.py`. Exit code 1 at the first violation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.end_to_end.crashes import Crashes

TOLD_EVERY = 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), kills=options.kills, seed=options.seed)


def run(folder: Path, *, kills: int, seed: int) -> int:
    """The exit code."""
    crashes = Crashes(folder, seed=seed)
    began = time.monotonic()
    with crashes.upstream():
        for number in range(1, kills + 1):
            crashes.kill_one()
            if violations := crashes.violations():
                print(f"FAIL after kill {number}:", *violations, sep="\n  ")
                return 1
            if number % TOLD_EVERY == 0 or number == kills:
                ledger = crashes.ledger
                print(
                    f"{number} kills, {len(ledger.pins):,} answers, {len(ledger.rewards):,} "
                    f"rewards and {len(ledger.candidates)} candidates acknowledged, no violation; "
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
        if violations := crashes.told_by_the_next_server():
            print("FAIL the status of the next server:", *violations, sep="\n  ")
            return 1
    print("PASS nothing is lost, and nothing is counted twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
