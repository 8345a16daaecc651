"""How much exploring costs, and what it finds: our selection beside others, on simulated traffic.

    python -m benchmarks.selection                          # the whole: about 15 minutes on 2 cores
    python -m benchmarks.selection --seeds 20 --surfaces rich --policies ours "TPE online"

The same surfaces, outcomes and delays for all policies. Simple regret is that of the candidate a
policy would name the best, in points of the success rate; cumulative regret adds up the traffic's
shortfalls, both against the best candidate in play. Lift is the traffic's mean reward less the
baseline's. `+-` is the standard error over the seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.policies import POLICIES
from benchmarks.simulation import Scenario, Traffic

Vector = NDArray[np.float64]

ROLLOUTS = 2_000
MARKS = (200, 500, 2_000)
SURFACES = (Scenario.HARD, Scenario.RICH, Scenario.NONADDITIVE, Scenario.WEAK_PROPOSER)
SEEDS_PER_JOB = 5

OURS = "ours"
CAUTIOUS = "ours, cautious"


class Outcome(NamedTuple):
    """Of one session, each at the marks: regrets in chances of success."""

    simple_regret: tuple[float, ...]
    cumulative_regret: tuple[float, ...]
    lift: tuple[float, ...]


class Bar(NamedTuple):
    """A claim, what was measured with its standard error, and whether it holds."""

    claim: str
    measured: float
    error: float
    holds: bool


class Results:
    """Outcomes of all sessions."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[Scenario, str], dict[int, Outcome]] = {}

    def add(self, surface: Scenario, policy: str, outcomes: Mapping[int, Outcome]) -> None:
        self._outcomes.setdefault((surface, policy), {}).update(outcomes)

    def has(self, surface: Scenario, *policies: str) -> bool:
        return all((surface, policy) in self._outcomes for policy in policies)

    def values(self, surface: Scenario, policy: str, measure: str) -> NDArray[np.float64]:
        """(seeds, marks), by seed."""
        outcomes = self._outcomes[surface, policy]
        return np.array([getattr(outcomes[seed], measure) for seed in sorted(outcomes)])


def play(policy: str, surface: Scenario, seed: int) -> Outcome:
    """One session."""
    traffic = Traffic.of(surface, seed, rollouts=ROLLOUTS)
    means, best = traffic.surface.means, traffic.best()
    player = POLICIES[policy](np.random.default_rng([seed, 1]), ROLLOUTS)
    rewards, in_play = traffic.rewards.tolist(), traffic.in_play.tolist()
    chosen: list[int] = []
    picked: list[float] = []
    for rollout, arrived in enumerate(traffic.arrivals[:ROLLOUTS]):
        for earlier in arrived:
            player.observe(earlier, chosen[earlier], rewards[earlier][chosen[earlier]])
        chosen.append(player.choose(rollout, in_play[rollout]))
        if rollout + 1 in MARKS:
            picked.append(float(best[rollout] - means[player.pick()]))
    earned = means[chosen]
    regret = np.cumsum(best - earned)
    lift = np.cumsum(earned - means[0])
    return Outcome(
        tuple(picked),
        tuple(float(regret[mark - 1]) for mark in MARKS),
        tuple(float(lift[mark - 1] / mark) for mark in MARKS),
    )


def play_all(policy: str, surface: Scenario, seeds: Sequence[int]) -> dict[int, Outcome]:
    return {seed: play(policy, surface, seed) for seed in seeds}


def bars(results: Results) -> Iterator[Bar]:
    """The claims that the results can judge."""
    rich, nonadditive, weak = Scenario.RICH, Scenario.NONADDITIVE, Scenario.WEAK_PROPOSER
    for measure, mark, rival, limit in (
        ("cumulative_regret", 500, "TPE online", 0.65),
        ("cumulative_regret", 2_000, "TPE online", 0.45),
        ("cumulative_regret", 2_000, "TPE, DSPy loop", 0.40),
        ("simple_regret", 500, "TPE online", 0.55),
    ):
        if results.has(rich, OURS, rival):
            at = MARKS.index(mark)
            ratio, error = _ratio(
                *(results.values(rich, policy, measure)[:, at] for policy in (OURS, rival))
            )
            name = f"rich: {measure.replace('_', ' ')} at {mark} / that of {rival} <= {limit:.2f}"
            yield Bar(name, ratio, error, ratio <= limit)
    if results.has(nonadditive, OURS, "Beta Thompson"):
        for measure, unit in (("simple_regret", 100.0), ("cumulative_regret", 1.0)):
            ours, theirs = (
                results.values(nonadditive, policy, measure)[:, -1] * unit
                for policy in (OURS, "Beta Thompson")
            )
            mean, error = _mean(ours - theirs)
            name = f"nonadd: {measure.replace('_', ' ')} at 2000 - that of Beta Thompson <= 2 SE"
            yield Bar(name, mean, error, mean <= 2.0 * error)
    for policy in (OURS, CAUTIOUS):
        if results.has(weak, policy):
            mean, error = _mean(results.values(weak, policy, "lift")[:, -1] * 100.0)
            yield Bar(f"weak: lift of the traffic at 2000, {policy} >= 0", mean, error, mean >= 0)


def table(results: Results, surface: Scenario, policies: Sequence[str]) -> Iterator[str]:
    """The surface's figures, a line for each policy."""
    marks = " / ".join(map(str, MARKS))
    seeds = len(results.values(surface, policies[0], "lift"))
    yield f"{surface}, {seeds} seeds, at {marks} rollouts"
    yield f"{'':20}  {'simple regret, points':32}  {'cumulative regret':34}  lift, points"
    for policy in policies:
        columns = [
            _cells(results.values(surface, policy, measure) * unit)
            for measure, unit in (
                ("simple_regret", 100.0),
                ("cumulative_regret", 1.0),
                ("lift", 100.0),
            )
        ]
        yield f"{policy:20}  {columns[0]:32}  {columns[1]:34}  {columns[2]}"


def run(
    surfaces: Sequence[Scenario], policies: Sequence[str], *, seeds: int, processes: int
) -> Results:
    """Play every session, with progress on stderr."""
    results = Results()
    # Matrices are small here: threads of their own would only wait for each other.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    started = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(play_all, policy, surface, batch): (surface, policy)
            for batch in _batches(seeds)
            for surface, policy in product(surfaces, policies)
        }
        for done, job in enumerate(as_completed(jobs), start=1):
            results.add(*jobs[job], job.result())
            seconds = time.monotonic() - started
            print(f"\r{done}/{len(jobs)} jobs, {seconds:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--surfaces", nargs="+", type=Scenario, default=SURFACES, choices=Scenario)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    results = run(asked.surfaces, asked.policies, seeds=asked.seeds, processes=asked.processes)
    for surface in asked.surfaces:
        print(*table(results, surface, asked.policies), "", sep="\n")
    judged = list(bars(results))
    for bar in judged:
        verdict = "PASS" if bar.holds else "FAIL"
        print(f"{verdict}  {bar.claim}: {bar.measured:.2f} +- {bar.error:.2f}")
    return int(not all(bar.holds for bar in judged))


def _batches(seeds: int) -> Iterator[range]:
    for first in range(0, seeds, SEEDS_PER_JOB):
        yield range(first, min(first + SEEDS_PER_JOB, seeds))


def _mean(values: Vector) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _ratio(ours: Vector, theirs: Vector) -> tuple[float, float]:
    """The ratio of the means and its standard error, by the delta method on paired seeds."""
    ratio = float(ours.mean() / theirs.mean())
    return ratio, _mean(ours - ratio * theirs)[1] / float(theirs.mean())


def _cells(values: NDArray[np.float64]) -> str:
    return " / ".join("{:.1f}+-{:.1f}".format(*_mean(column)) for column in values.T)


if __name__ == "__main__":
    raise SystemExit(main())
