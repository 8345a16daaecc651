"""How often a worse candidate is promoted, and how soon a better one, looking after every reward.

    python -m benchmarks.promotion

plays whole sessions on the surfaces of `benchmarks.simulation`: our selection with its default
settings, duels, late rewards, a pool that grows. What other rules would promote is found on
sessions of the same seeds with the traffic that such rules need: our selection without duels, a
tenth of it for the baseline.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.duels import REWARDS_PER_LOOK, Promotion, Session, Way
from benchmarks.rival_rules import RIVALS, Rule, first_promotion
from benchmarks.simulation import Scenario, Traffic
from prefect_mipro.models.candidates import DuelState

ROLLOUTS = 2_000
# No constant of the package was chosen on these seeds.
FIRST_SEED = 50_000
LARGEST_FALSE_SHARE = 0.05
# Shares of sessions: false promotions at most on the nulls, promotions at least elsewhere.
PROMOTED = {Scenario.HARD: 0.38, Scenario.RICH: 0.80}
NULLS = (Scenario.EQUAL, Scenario.WORSE)


@dataclass(frozen=True)
class Job:
    """One seed of a surface; only some are played by other rules, and without duels, too."""

    scenario: Scenario
    seed: int
    with_rivals: bool
    rewards_per_look: int


@dataclass(frozen=True)
class Result:
    """What became of it: ours, what the other rules would promote first, and what duels cost."""

    promotions: tuple[Promotion, ...]
    duels: Counter[DuelState]
    rivals: Mapping[Rule, Promotion | None]
    regret: float
    regret_without_duels: float | None


def play(job: Job) -> Result:
    """All of one seed's sessions. Duels have a price only where there is something to earn."""
    traffic = Traffic.of(job.scenario, job.seed, rollouts=ROLLOUTS)

    def session(way: Way) -> Session:
        rng = np.random.default_rng([job.seed, 1])
        return Session(traffic, way, rng, job.rewards_per_look).play()

    ours = session(Way.DUELS)
    without, rivals = None, {}
    if job.with_rivals:
        rivals = _rivals(session(Way.FLOOR))
        without = None if job.scenario in NULLS else session(Way.NO_DUELS).regret
    return Result(tuple(ours.promotions), ours.ended, rivals, ours.regret, without)


def _rivals(session: Session) -> dict[Rule, Promotion | None]:
    arrived = np.array(session.arrived)
    candidates = session.chosen[arrived]
    rewards = session.traffic.rewards[arrived, candidates]
    found = {rule: first_promotion(rival, candidates, rewards) for rule, rival in RIVALS.items()}
    found[Rule.MODEL] = session.convincing
    means = session.traffic.surface.means
    return {
        rule: first and Promotion(session.arrived[first[0]], float(means[first[1]] - means[0]))
        for rule, first in found.items()
    }


def report(results: Mapping[Scenario, Sequence[Result]]) -> bool:
    """Print the tables. Returns whether every bar is reached."""
    print(f"\nPromotions within {ROLLOUTS:,} rollouts. In brackets: standard errors.")
    for scenario, runs in results.items():
        print(f"\n{scenario:26}{'sessions':>8}{'with a promotion':>20}{'with a false one':>20}")
        _print_rule("duels (ours)", [run.promotions for run in runs])
        for rule in Rule if any(run.rivals for run in runs) else ():
            found = [run.rivals[rule] for run in runs if run.rivals]
            _print_rule(rule, [[promotion] if promotion else [] for promotion in found])
        _print_duels(runs)
        if scenario not in NULLS:
            _print_prize(runs)
    print()
    bars = [_bar(scenario, runs) for scenario, runs in results.items()]
    return all(bars)


def _print_rule(rule: str, promotions: Sequence[Sequence[Promotion]]) -> None:
    promoted = share(bool(found) for found in promotions)
    falsely = share(any(promotion.false for promotion in found) for found in promotions)
    print(f"  {rule:24}{len(promotions):8,}{promoted:>20}{falsely:>20}")


def _print_duels(runs: Sequence[Result]) -> None:
    ended = sum((run.duels for run in runs), Counter[DuelState]())
    ends = ", ".join(f"{state} {count / len(runs):.2f}" for state, count in sorted(ended.items()))
    print(f"  duels ended in a session: {ended.total() / len(runs):.2f} ({ends})")


def _print_prize(runs: Sequence[Result]) -> None:
    firsts = [run.promotions[0].rollout for run in runs if run.promotions]
    if firsts:
        print(f"  first promotion, median: after {np.median(firsts):,.0f} rollouts")
    lifts = [sum(promotion.lift for promotion in run.promotions) for run in runs]
    print(f"  lift of the last champion, in points: {mean(lifts, scale=100)}")
    print(f"  regret: {mean([run.regret for run in runs])}")
    price = [
        run.regret - run.regret_without_duels
        for run in runs
        if run.regret_without_duels is not None
    ]
    if price:
        print(f"  regret that duels cost: {mean(price)}, {len(price)} sessions")


def _bar(scenario: Scenario, runs: Sequence[Result]) -> bool:
    if scenario in NULLS:
        happened = [any(promotion.false for promotion in run.promotions) for run in runs]
        passed = np.mean(happened) <= LARGEST_FALSE_SHARE
        bar = f"with a false promotion at most {LARGEST_FALSE_SHARE}"
    elif scenario in PROMOTED:
        happened = [bool(run.promotions) for run in runs]
        passed = np.mean(happened) >= PROMOTED[scenario]
        bar = f"with a promotion at least {PROMOTED[scenario]}"
    else:
        return True
    print(
        f"{'PASS' if passed else 'FAIL'}  {scenario}: {bar}: {share(happened)}, n = {len(runs):,}"
    )
    return bool(passed)


def share(happened: Iterable[bool]) -> str:
    """A share with its binomial standard error."""
    values = np.array(list(happened), dtype=np.float64)
    p = float(values.mean())
    return f"{p:.3f} ({math.sqrt(p * (1.0 - p) / len(values)):.3f})"


def mean(values: Sequence[float], *, scale: float = 1.0) -> str:
    """A mean with its standard error."""
    scaled = scale * np.array(values)
    return f"{scaled.mean():.1f} ({scaled.std() / math.sqrt(len(scaled)):.1f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="of surfaces with better candidates")
    parser.add_argument("--null-seeds", type=int, default=1_000, help="of those without")
    parser.add_argument("--rival-seeds", type=int, default=300, help="of other rules, on each")
    parser.add_argument("--rewards-per-look", type=int, default=REWARDS_PER_LOOK)
    parser.add_argument("--surfaces", type=Scenario, nargs="+", default=[*NULLS, *PROMOTED])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    jobs = [
        Job(scenario, FIRST_SEED + seed, seed < options.rival_seeds, options.rewards_per_look)
        for scenario in options.surfaces
        for seed in range(options.null_seeds if scenario in NULLS else options.seeds)
    ]
    # Matrices of 42 rows: threads cost more than they save. The processes inherit it.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    results: dict[Scenario, list[Result]] = {scenario: [] for scenario in options.surfaces}
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, result in enumerate(pool.imap(play, jobs, chunksize=4), start=1):
            results[jobs[done - 1].scenario].append(result)
            if done % 20 == 0 or done == len(jobs):
                seconds = time.monotonic() - began
                print(f"{done} of {len(jobs)} seeds in {seconds:.0f} s", file=sys.stderr)
    return 0 if report(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
