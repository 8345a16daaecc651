"""Kill the server at random moments, and look for what is lost or counted twice.

    python -m benchmarks.crash --kills 300
    python -m benchmarks.crash --removals 300
    python -m benchmarks.crash --flow 30

Six programs call a real server on a SQLite file, reward their rollouts, some of them twice, and add
candidates. After a random number of answers the process gets a SIGKILL. Then the file is compared
with what the programs were told, and each counter in it with the facts that it counts. The harness
is the test suite's, `tests/end_to_end/crashes.py`. Exit code 1 at the first violation.

With `--removals` each server is killed while it deletes a session of 300 rollouts, forgets one user
of another session, and removes old rollouts of the first one (`--rollout-retention-days`).
`db check` must find no fault in what is left, and what was acknowledged must be there or be known
as removed. The last server must end all deletions and requests to forget: no table may hold
anything of the forgotten users, and all rows of the other users must be unchanged.

With `--flow` so many flow processes are killed instead, in the middle of `optimize_prompt` on a
real Prefect server; then one runs to its end on the same session, and it is the backend that is
killed under it. What the backend holds is compared with the rollouts that the programs had begun:
no reward twice, and each rollout that was served is rewarded, or open and told so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.end_to_end.crashes import Crashes
from tests.end_to_end.flow_crashes import WORKERS, FlowCrashes
from tests.end_to_end.removal_crashes import RemovalCrashes

TOLD_EVERY = 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--flow", type=int, metavar="KILLS", help="kill this many flow processes instead"
    )
    parser.add_argument(
        "--removals",
        type=int,
        metavar="KILLS",
        help="kill this many servers amid deletions and requests to forget instead",
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.flow:
            return run_flows(Path(folder), kills=options.flow, seed=options.seed)
        if options.removals:
            return run_removals(Path(folder), kills=options.removals, seed=options.seed)
        return run(Path(folder), kills=options.kills, seed=options.seed)


def run_flows(folder: Path, *, kills: int, seed: int) -> int:
    """The exit code."""
    # Here, because servers that are killed need no Prefect.
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    began = time.monotonic()
    with prefect_test_harness(server_startup_timeout=240):
        crashes = FlowCrashes(folder, prefect_api_url=PREFECT_API_URL.value() or "", seed=seed)
        with crashes.backend():
            for number in range(1, kills + 1):
                crashes.kill_one()
                if violations := crashes.violations():
                    print(f"FAIL after kill {number}:", *violations, sep="\n  ")
                    return 1
            ran = crashes.run_to_the_end()
            violations, flow = crashes.violations(), crashes.status().reward_flow
    if violations or ran.rewarded < ran.rollouts - WORKERS:
        print(f"FAIL the last run, with {ran.rewarded} rewards:", *violations, sep="\n  ")
        return 1
    print(
        f"{kills} kills, {flow.rewarded:,} rewards, {flow.in_flight + flow.missing} rollouts that "
        f"are open and told; {time.monotonic() - began:.0f} s\n"
        "PASS nothing is rewarded twice, and no rollout is unaccounted for"
    )
    return 0


def run_removals(folder: Path, *, kills: int, seed: int) -> int:
    """The exit code."""
    crashes = RemovalCrashes(folder, seed=seed)

    def told() -> str:
        ledger = crashes.ledger
        found = ", ".join(f"{times} {state}" for state, times in sorted(crashes.found.items()))
        return (
            f"{found}; {len(ledger.pins):,} answers and {len(ledger.rewards):,} rewards "
            f"acknowledged, {crashes.removed:,} rollouts removed"
        )

    with crashes.upstream():
        if not survived(crashes, kills, told):
            return 1
        if left := crashes.left_by_the_next_server():
            print("FAIL sessions with work that has not ended:", *left, sep="\n  ")
            return 1
        if violations := crashes.violations():
            print("FAIL after the last server:", *violations, sep="\n  ")
            return 1
    print("PASS nothing is lost, damaged or remembered, and all that was begun has ended")
    return 0


def run(folder: Path, *, kills: int, seed: int) -> int:
    """The exit code."""
    crashes = Crashes(folder, seed=seed)

    def told() -> str:
        ledger = crashes.ledger
        return (
            f"{len(ledger.pins):,} answers, {len(ledger.rewards):,} rewards and "
            f"{len(ledger.candidates)} candidates acknowledged"
        )

    with crashes.upstream():
        if not survived(crashes, kills, told):
            return 1
        if violations := crashes.told_by_the_next_server():
            print("FAIL the status of the next server:", *violations, sep="\n  ")
            return 1
    print("PASS nothing is lost, and nothing is counted twice")
    return 0


def survived(crashes: Crashes, kills: int, told: Callable[[], str]) -> bool:
    """Kill a server again and again, printing `told` now and then; whether no kill did harm."""
    began = time.monotonic()
    for number in range(1, kills + 1):
        crashes.kill_one()
        if violations := crashes.violations():
            print(f"FAIL after kill {number}:", *violations, sep="\n  ")
            return False
        if number % TOLD_EVERY == 0 or number == kills:
            seconds = time.monotonic() - began
            print(f"{number} kills, {told()}, no violation; {seconds:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
