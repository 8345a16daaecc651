"""The figures of the comparison with MIPROv2: means and standard errors over seeds, in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import numpy as np

from benchmarks.labelling import Task
from benchmarks.runs import Results, Run, Tested

TITLES = {
    "mipro_v2": "dspy.MIPROv2",
    "ours": "ours",
    "their_pool": "its pool, our selector",
}
BAR = "our champion at half of the calls is at least as good as MIPROv2's program at all of them"
WIDTH, PAIRED = 40, 29
# A difference of nothing may come out of the sums as a little less.
NOTHING = -1e-9


def report(results: Results, tasks: Sequence[Task], sides: Sequence[str]) -> str:
    """A table and a verdict for each task that there are runs of."""
    return "\n\n".join(filter(None, (_task_report(results, task, sides) for task in tasks)))


def _task_report(results: Results, task: Task, sides: Sequence[str]) -> str:
    runs = {side: results.runs(task.name, side) for side in sides}
    # A seed counts once each side has it.
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    baseline = results.get(task.name, 0, "baseline")
    if not seeds or baseline is None:
        return ""
    base = baseline.tested["returned"]
    peers = [runs["mipro_v2"][seed].tested["returned"] for seed in seeds]
    lines = [
        f"{task.name}: {len(task.labels)} labels, {len(base.rewards)} held-out rows, "
        f"{len(seeds)} seeds; mean ± standard error over seeds",
        "",
        f"{'':<{WIDTH}}{'calls':>6}  {'accuracy':<15}{'minus MIPROv2, in pairs':<{PAIRED}}"
        f"{'< baseline':>10}{'prompt tokens':>15}",
        _row("baseline, the caller's prompt", [base], base, None),
    ]
    for side in sides:
        for point in runs[side][seeds[0]].tested:
            tested = [runs[side][seed].tested[point] for seed in seeds]
            compared = None if side == "mipro_v2" else peers
            lines.append(_row(f"{TITLES[side]}: {point}", tested, base, compared))
    lines += [
        "",
        f"{'while learning':<{WIDTH}}{'calls':>6}  {'proposer':>8}  {'reward earned':<17}"
        f"{'reward per call':<19}{'at half':<17}{'tokens':>9}{'seconds':>9}",
        *(_learning(TITLES[side], [runs[side][seed] for seed in seeds]) for side in sides),
        "",
        _verdict(task, [runs["ours"][seed].tested["champion at half"] for seed in seeds], peers),
    ]
    return "\n".join(lines)


def _row(title: str, tested: Sequence[Tested], base: Tested, peers: Sequence[Tested] | None) -> str:
    below = sum(each.accuracy < base.accuracy for each in tested)
    return (
        f"{title:<{WIDTH}}{fmean(each.calls for each in tested):>6.0f}  "
        f"{_spread([each.accuracy for each in tested]):<15}"
        f"{_paired(tested, peers) if peers else '':<{PAIRED}}"
        f"{f'{below} of {len(tested)}':>10}"
        f"{fmean(each.prompt_tokens for each in tested):>15.0f}"
    )


def _learning(title: str, runs: Sequence[Run]) -> str:
    def mean(value: Callable[[Run], float]) -> float:
        return fmean(value(run) for run in runs)

    return (
        f"{title:<{WIDTH}}{mean(lambda run: run.calls):>6.0f}  "
        f"{mean(lambda run: run.proposer_calls):>8.0f}  "
        f"{_spread([run.earned(run.calls) for run in runs], digits=1):<17}"
        f"{_spread([run.earned(run.calls) / run.calls for run in runs]):<19}"
        f"{_spread([run.earned(run.calls // 2) for run in runs], digits=1):<17}"
        f"{mean(lambda run: run.prompt_tokens + run.completion_tokens):>9.0f}"
        f"{mean(lambda run: run.seconds):>9.0f}"
    )


def _verdict(task: Task, ours: Sequence[Tested], peers: Sequence[Tested]) -> str:
    lift = fmean(a.accuracy - b.accuracy for a, b in zip(ours, peers, strict=True))
    word = "PASS" if lift >= NOTHING else "FAIL"
    return f"{word} {task.name}: {BAR}: {_paired(ours, peers)}"


def _paired(tested: Sequence[Tested], peers: Sequence[Tested]) -> str:
    """The mean difference with two standard errors: over seeds, and over held-out rows."""
    differences = np.array(
        [np.subtract(each.rewards, peer.rewards) for each, peer in zip(tested, peers, strict=True)]
    )
    by_row = differences.mean(axis=0)
    error = f"{by_row.std(ddof=1) / math.sqrt(len(by_row)):.3f}" if len(by_row) > 1 else "-"
    seeds = _spread(list(differences.mean(axis=1)), signed=True)
    return f"{seeds} (rows {error})"


def _spread(values: Sequence[float], *, digits: int = 3, signed: bool = False) -> str:
    mean = f"{fmean(values):{'+' if signed else ''}.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {stdev(values) / math.sqrt(len(values)):.{digits}f}"
