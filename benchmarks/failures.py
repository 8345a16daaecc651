"""How many live calls fail where prompts fail, and whether such a candidate is promoted.

    python -m benchmarks.failures

plays sessions of five candidates, the caller's own prompt among them, with the optimizer's own
failure evidence, selection and duels. One of the others, or all four, fail on the hardest inputs:
30 % of them, or all. A failure is known when its call ends, some rollouts after it began; rewards
come later. The second table is about candidates that fail on 3, 10 or 30 % of the inputs, are
better on the others, and earn exactly what the baseline earns if a failure counts as 0. The third
is about inputs on which every prompt fails, the baseline's too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product

import numpy as np

from benchmarks.promotion import share
from prefect_mipro.config import PromotionSettings, SelectionSettings
from prefect_mipro.models.candidates import Arm, Duel, DuelObservation, DuelState, Statistics
from prefect_mipro.models.rollouts import FailedRollout
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.failures import RETIRE_EVIDENCE, failure_evidence, on_probation
from prefect_mipro.optimizer.posterior import Posterior, posterior
from prefect_mipro.optimizer.promotion import challenger, verdict
from prefect_mipro.optimizer.selection import Choice, Plan, choose, plan

CANDIDATES = 5
IDS = tuple(f"candidate {number}" for number in range(1, CANDIDATES + 1))
BASELINE = IDS[0]
# How many calls begin while one is on its way, and the mean delay of its reward after it.
IN_FLIGHT = 8
MEAN_DELAY = 16
REWARDS_PER_LOOK = 4
# The success rate of the baseline; a candidate that fails is better by this where it answers.
BASELINE_RATE = 0.5
LIFT = 0.1
# No constant of the package was chosen on these seeds.
FIRST_SEED = 70_000
# Bars: the largest share of live calls that may fail, by the number of failing candidates.
LARGEST_FAILED_SHARE = {1: 0.05, 4: 0.10}
LARGEST_WITH_FALLBACK = 0.01
LARGEST_FALSE_SHARE = 0.05

SELECTION = SelectionSettings()
PROMOTION = PromotionSettings()
START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Job:
    """One session. `equal` makes candidates that fail earn what the baseline earns.

    Without a guard failed calls are left out, as if they had not been made; with `everyone` all
    candidates fail alike.
    """

    failing: int
    on: float
    fallback: bool
    seed: int
    rollouts: int = 600
    equal: bool = False
    guarded: bool = True
    everyone: bool = False


@dataclass(frozen=True)
class Result:
    """The share of failed live calls, the calls of each retired candidate, a false promotion."""

    failed_share: float
    retired_after: tuple[int, ...]
    promoted_falsely: bool


@dataclass(eq=False)
class Session:
    """A session in miniature."""

    job: Job
    champion_id: str = BASELINE
    duel: Duel | None = None
    failures: list[FailedRollout] = field(default_factory=list)
    promoted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        job = self.job
        self.rng = np.random.default_rng([FIRST_SEED, job.seed, job.failing, int(100 * job.on)])
        self.active = list(IDS)
        self.statistics = {i: Statistics() for i in IDS}
        self.failing_ids = IDS[1 : 1 + job.failing]
        self.retired_calls: dict[str, int] = {}
        self.outcome: dict[int, float] = {}
        self.choices: dict[int, Choice] = {}
        self.watermark = 0
        self.seen: list[DuelObservation] = []
        self.looked = 0
        self.left_out: set[int] = set()

    def play(self) -> Result:
        job, rng = self.job, self.rng
        due: list[list[tuple[int, float | None]]] = [[] for _ in range(job.rollouts + 1)]
        failed_calls, plan_now = 0, None
        for rollout in range(job.rollouts):
            changed = False
            for earlier, reward in due[rollout]:
                changed |= self._learn(earlier, reward)
            rewards = sum(self.statistics[i].rewards for i in IDS)
            if plan_now is None or changed or rewards - self.looked >= REWARDS_PER_LOOK:
                self.looked = rewards
                plan_now = self._look(rollout)
            choice = self._serve(rollout, plan_now)
            hard = bool(rng.random() < job.on)
            fails = hard and (job.everyone or choice.candidate_id in self.failing_ids)
            failed_calls += fails and not job.fallback
            at = rollout + IN_FLIGHT
            if not fails:
                at += int(rng.geometric(1.0 / MEAN_DELAY))
            reward = None if fails else float(rng.random() < self._rate(choice.candidate_id))
            due[min(at, job.rollouts)].append((rollout, reward))
        return Result(
            failed_share=failed_calls / job.rollouts,
            retired_after=tuple(self.retired_calls.values()),
            promoted_falsely=bool(set(self.promoted) & set(self.failing_ids)),
        )

    def _rate(self, candidate_id: str) -> float:
        if candidate_id not in self.failing_ids:
            return BASELINE_RATE
        job = self.job
        return BASELINE_RATE / (1.0 - job.on) if job.equal else BASELINE_RATE + LIFT

    def _serve(self, rollout: int, shares: Plan) -> Choice:
        choice = choose(
            shares,
            duel=self.duel,
            expected_deviation=0.0,
            settings=SELECTION,
            promotion=PROMOTION,
            rng=self.rng,
        )
        self.choices[rollout] = choice
        self._count(choice.candidate_id, rollouts=1)
        if self.duel and choice.duel_number == self.duel.number:
            self.duel = self.duel.model_copy(update={"rollouts": self.duel.rollouts + 1})
        return choice

    def _learn(self, rollout: int, reward: float | None) -> bool:
        """Count a reward, or a failure where there is none. Whether it was a failure."""
        choice = self.choices[rollout]
        value = self.outcome[rollout] = reward or 0.0
        left_out = reward is None and not self.job.guarded
        if left_out:
            self.left_out.add(rollout)
        if self.duel and choice.duel_number == self.duel.number and not left_out:
            counted = {
                "rewards": self.duel.rewards + 1,
                "reward_sum": self.duel.reward_sum + value,
            }
            self.duel = self.duel.model_copy(update=counted)
        if reward is not None:
            self._count(
                choice.candidate_id,
                calls=1,
                rewards=1,
                reward_sum=value,
                reward_square_sum=value * value,
            )
            return False
        self.failures.append(
            FailedRollout(candidate_id=choice.candidate_id, shares=dict(choice.propensities))
        )
        failures = 1 if self.job.guarded else 0
        self._count(choice.candidate_id, calls=1, failed_calls=1, failures=failures, missing=1)
        return True

    def _count(self, candidate_id: str, **more: float) -> None:
        counted = self.statistics[candidate_id]
        update = {name: getattr(counted, name) + value for name, value in more.items()}
        self.statistics[candidate_id] = counted.model_copy(update=update)

    def _look(self, rollout: int) -> Plan:
        against = self._retire() if self.job.guarded else {}
        arms = [
            Arm(candidate_id=i, levers=(number, 1), statistics=self.statistics[i])
            for number, i in enumerate(IDS, start=1)
        ]
        evidence = Evidence.of(arms)
        belief = posterior(evidence)
        self._promote(rollout, belief)
        return plan(
            evidence,
            belief=belief,
            active=self.active,
            champion_id=self.champion_id,
            settings=SELECTION,
            rng=self.rng,
            probation=on_probation(
                self.failures,
                against,
                unanswered={i for i in self.active if not self.statistics[i].answered_calls},
                baseline_id=BASELINE,
                champion_id=self.champion_id,
            )
            if self.job.guarded
            else frozenset(),
        )

    def _retire(self) -> dict[str, float]:
        against = dict(
            failure_evidence(
                self.failures,
                self.active,
                baseline_id=BASELINE,
                champion_id=self.champion_id,
            )
        )
        for candidate_id, e_value in list(against.items()):
            if e_value >= RETIRE_EVIDENCE:
                del against[candidate_id]
                self.active.remove(candidate_id)
                self.retired_calls[candidate_id] = self.statistics[candidate_id].rollouts
                if candidate_id == self.champion_id:
                    self.champion_id = BASELINE
        return against

    def _promote(self, rollout: int, belief: Posterior) -> None:
        """What `server.services.promotion` does after a reward."""
        if self.duel and self.duel.state is DuelState.RUNNING:
            sides = {self.duel.champion_id, self.duel.challenger_id}
            if not sides <= set(self.active):
                self._end(DuelState.ABANDONED)
                return
            self._observe(self.duel)
            state = verdict(
                self.duel,
                self.seen,
                belief,
                active=self.active,
                awaited=self.duel.rollouts - len(self.seen),
                settings=PROMOTION,
            )
            if state is not DuelState.RUNNING:
                self._end(state)
            return
        found = challenger(
            belief,
            active=self.active,
            champion_id=self.champion_id,
            duel=self.duel,
            rollouts_now=rollout,
            settings=PROMOTION,
        )
        if found:
            self.seen, self.watermark = [], 0
            self.duel = Duel(
                session_id="session",
                number=self.duel.number + 1 if self.duel else 1,
                champion_id=self.champion_id,
                challenger_id=found[0],
                predicted_lift=found[1],
                rollouts_before=rollout,
                started_at=START,
            )

    def _observe(self, duel: Duel) -> None:
        """Add the duel's rollouts up to the watermark, in the order of the pins."""
        while self.watermark in self.outcome:
            choice = self.choices[self.watermark]
            own = choice.duel_number == duel.number and self.watermark not in self.left_out
            if own and choice.predicted_reward is not None:
                self.seen.append(
                    DuelObservation(
                        is_challenger=choice.candidate_id == duel.challenger_id,
                        reward=self.outcome[self.watermark],
                        predicted_reward=choice.predicted_reward,
                    )
                )
            self.watermark += 1

    def _end(self, state: DuelState) -> None:
        assert self.duel is not None
        self.duel = self.duel.model_copy(update={"state": state})
        if state is DuelState.WON:
            self.champion_id = self.duel.challenger_id
            self.promoted.append(self.champion_id)


def play(job: Job) -> Result:
    return Session(job).play()


def mean(values: Sequence[float]) -> str:
    """A mean with its standard error, in percent."""
    array = 100.0 * np.array(values)
    return f"{array.mean():5.2f} ({array.std(ddof=1) / np.sqrt(len(array)):.2f})"


def traffic_table(pool: ProcessPoolExecutor, sessions: int) -> bool:
    """Print the shares of failed live calls. Returns whether every bar is reached."""
    print(f"\nFailed live calls of 600, in percent; {sessions} sessions each (standard errors)")
    print(f"{'':34}{'left out':>16}{'guarded':>16}{'with fallback':>16}   calls until retired")
    good = True
    for failing, on in product((1, 4), (0.3, 1.0)):
        jobs = [Job(failing, on, False, seed) for seed in range(sessions)]
        before = list(pool.map(play, [replace(job, guarded=False) for job in jobs], chunksize=8))
        ours = list(pool.map(play, jobs, chunksize=8))
        fallback = list(pool.map(play, [replace(job, fallback=True) for job in jobs], chunksize=8))
        shares = [result.failed_share for result in ours]
        with_it = [result.failed_share for result in fallback]
        calls = [count for result in ours for count in result.retired_after]
        print(
            f"{failing} of 5 fail on {on:4.0%} of the inputs   "
            f"{mean([result.failed_share for result in before]):>16}{mean(shares):>16}"
            f"{mean(with_it):>16}   median {np.median(calls):.0f}, "
            f"95 % {np.quantile(calls, 0.95):.0f}, n = {len(calls)}"
        )
        passed = np.mean(shares) <= LARGEST_FAILED_SHARE[failing]
        passed = passed and np.mean(with_it) < LARGEST_WITH_FALLBACK
        print(
            f"{'PASS' if passed else 'FAIL'}  at most {LARGEST_FAILED_SHARE[failing]:.0%}, "
            f"with the fallback under {LARGEST_WITH_FALLBACK:.0%}"
        )
        good = good and bool(passed)
    return good


def everyone_table(pool: ProcessPoolExecutor, sessions: int) -> bool:
    """Print how many candidates are retired where all fail alike. Whether the bar is reached."""
    print("\nAll five fail alike: candidates retired within 600 rollouts")
    good = True
    for on in (0.03, 0.1, 0.3):
        jobs = [Job(0, on, False, seed, everyone=True) for seed in range(sessions)]
        results = list(pool.map(play, jobs, chunksize=4))
        retired = sum(len(result.retired_after) for result in results)
        candidates = sessions * (CANDIDATES - 1)
        happened = [True] * retired + [False] * (candidates - retired)
        passed = retired / candidates <= LARGEST_FALSE_SHARE
        print(
            f"{'PASS' if passed else 'FAIL'}  on {on:3.0%}: {share(happened)} of "
            f"{candidates:,} candidates; at most {LARGEST_FALSE_SHARE}"
        )
        good = good and passed
    return good


def promotion_table(pool: ProcessPoolExecutor, sessions: int, rollouts: int) -> bool:
    """Print false promotions of candidates that fail in part. Whether the bar is reached."""
    print(
        f"\nA candidate that fails in part is promoted within {rollouts:,} rollouts; four are such"
    )
    good = True
    for on in (0.03, 0.1, 0.3):
        jobs = [Job(4, on, False, seed, rollouts, equal=True) for seed in range(sessions)]
        results = list(pool.map(play, jobs, chunksize=4))
        happened = [result.promoted_falsely for result in results]
        passed = np.mean(happened) <= LARGEST_FALSE_SHARE
        print(
            f"{'PASS' if passed else 'FAIL'}  fails on {on:3.0%}: promoted in {share(happened)} of "
            f"{sessions} sessions; at most {LARGEST_FALSE_SHARE}"
        )
        good = good and bool(passed)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=200, help="for the shares of failed calls")
    parser.add_argument("--null-sessions", type=int, default=100, help="for false promotions")
    parser.add_argument("--null-rollouts", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.processes, context) as pool:
        good = traffic_table(pool, asked.sessions)
        sys.stdout.flush()
        good &= everyone_table(pool, asked.sessions)
        sys.stdout.flush()
        good &= promotion_table(pool, asked.null_sessions, asked.null_rollouts)
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
