"""The policies that `benchmarks/selection.py` compares: ours, and what others would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import create_trial

from benchmarks.simulation import CANDIDATES, IDS, LEVERS, arms
from prefect_mipro.config import Exploration, PromotionSettings, SelectionSettings
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import DEFAULT_SCALES, Posterior, Scales, posterior
from prefect_mipro.optimizer.selection import Plan, choose, plan

Vector = NDArray[np.float64]

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Rewards between two plans, as in the server.
REWARDS_PER_PLAN = 4
# Rollouts of one stretch of the traffic.
STRETCH = 32
ARMS = tuple(arms(*np.zeros((3, CANDIDATES), dtype=np.int64)))


class Policy(Protocol):
    """Chooses a candidate for each rollout and can say which is the best, at any time.

    Candidates are positions; the first `in_play` may be chosen. Rewards come late and in any order.
    """

    def choose(self, rollout: int, in_play: int) -> int: ...

    def observe(self, rollout: int, candidate: int, reward: int) -> None: ...

    def pick(self) -> int: ...


@dataclass(eq=False)
class Tally:
    """Rewards and rollouts in flight of each candidate; picks the best raw mean."""

    rng: np.random.Generator
    rollouts: int
    counts: Vector = field(default_factory=lambda: np.zeros(CANDIDATES))
    sums: Vector = field(default_factory=lambda: np.zeros(CANDIDATES))
    flight: Vector = field(default_factory=lambda: np.zeros(CANDIDATES))
    in_play: int = 0

    def choose(self, rollout: int, in_play: int) -> int:
        self.in_play = in_play
        chosen = self.chosen(rollout)
        self.flight[chosen] += 1
        return chosen

    def observe(self, rollout: int, candidate: int, reward: int) -> None:
        self.flight[candidate] -= 1
        self.counts[candidate] += 1
        self.sums[candidate] += reward

    def pick(self) -> int:
        counts = self.counts[: self.in_play]
        with np.errstate(invalid="ignore"):
            means = np.where(counts > 0, self.sums[: self.in_play] / counts, -1.0)
        return int(means.argmax())

    def chosen(self, rollout: int) -> int:
        """Uniform."""
        return int(self.rng.integers(self.in_play))

    def smoothed_means(self) -> Vector:
        """Means with one success and one failure added."""
        return np.asarray((self.sums + 1.0) / (self.counts + 2.0))[: self.in_play]


class Ucb1(Tally):
    """Auer, Cesa-Bianchi and Fischer 2002; rollouts in flight count as tried."""

    def chosen(self, rollout: int) -> int:
        tried = (self.counts + self.flight)[: self.in_play]
        if not tried.all():
            return int(tried.argmin())
        means = self.smoothed_means()
        return int((means + np.sqrt(2.0 * math.log(rollout + 1) / tried)).argmax())


class BetaThompson(Tally):
    """One Beta(1, 1) posterior per candidate (Thompson 1933)."""

    def chosen(self, rollout: int) -> int:
        counts, sums = self.counts[: self.in_play], self.sums[: self.in_play]
        return int(self.rng.beta(1.0 + sums, 1.0 + counts - sums).argmax())


class EpsilonGreedy(Tally):
    """The best mean, but one rollout in ten goes anywhere."""

    def chosen(self, rollout: int) -> int:
        if self.rng.random() < 0.1:
            return int(self.rng.integers(self.in_play))
        means = self.smoothed_means()
        return int(self.rng.choice(np.flatnonzero(means == means.max())))


class TrackAndStop(Tally):
    """In the manner of TensorZero: ten rewards each, then near-optimal shares until one has won.

    The shares are those of the optimal computing budget allocation (Chen et al. 2000). It stops at
    the generalized likelihood ratio ln((1 + ln t) / 0.05), and serves the winner until another
    candidate enters.
    """

    FEWEST = 10
    DELTA = 0.05

    def chosen(self, rollout: int) -> int:
        tried = (self.counts + self.flight)[: self.in_play]
        young = np.flatnonzero(tried < self.FEWEST)
        if self.rng.random() * self.in_play < len(young):
            return int(self.rng.choice(young))
        old = np.flatnonzero(self.counts[: self.in_play] >= self.FEWEST)
        if len(old) < 2:
            return int(self.rng.integers(self.in_play))
        counts, means = self.counts[old], self.sums[old] / self.counts[old]
        best = int(means.argmax())
        others = np.delete(np.arange(len(old)), best)
        gaps = np.maximum(means[best] - means[others], 0.01)
        variance = np.maximum(means * (1.0 - means), 0.01)
        noise = variance[best] / counts[best] + variance[others] / counts[others]
        ratio = float((gaps**2 / (2.0 * noise)).min())
        if not len(young) and ratio > math.log((1.0 + math.log(rollout + 1)) / self.DELTA):
            return int(old[best])
        shares = np.zeros(len(old))
        shares[others] = variance[others] / gaps**2
        shares[best] = math.sqrt(
            variance[best] * float((shares[others] ** 2 / variance[others]).sum())
        )
        return int(self.rng.choice(old, p=shares / shares.sum()))


@dataclass(eq=False)
class SuccessiveHalving(Tally):
    """Karnin, Koren and Somekh 2013; the horizon is known. Those that enter join the round."""

    out: set[int] = field(default_factory=set)
    round: int = 0

    def chosen(self, rollout: int) -> int:
        rounds = math.ceil(math.log2(CANDIDATES))
        left = [k for k in range(self.in_play) if k not in self.out]
        if rollout * rounds // self.rollouts > self.round and len(left) > 1:
            self.round += 1
            means = self.sums / np.maximum(self.counts, 1.0)
            left.sort(key=lambda k: -float(means[k]))
            self.out.update(left[math.ceil(len(left) / 2) :])
            left = left[: math.ceil(len(left) / 2)]
        return min(left, key=lambda k: float(self.counts[k] + self.flight[k]))


@dataclass(eq=False)
class Trial:
    """A minibatch of rollouts of one candidate, or a full evaluation of it."""

    candidate: int
    size: int
    issued: int = 0
    rewards: int = 0
    total: int = 0
    ask: optuna.trial.Trial | None = None

    @property
    def done(self) -> bool:
        return self.rewards == self.size

    @property
    def value(self) -> float:
        return self.total / self.size


@dataclass(eq=False)
class Tpe:
    """optuna's TPE, one minibatch a trial; its pick is the best trial, as optuna's own is.

    Trials run side by side while rewards are awaited (`constant_liar`). Categories of a study
    cannot grow: when a lever enters, a new study begins with the finished trials.
    """

    rng: np.random.Generator
    rollouts: int
    minibatch: int = 10
    in_play: int = 0
    trials: list[Trial] = field(default_factory=list)
    trial_of: dict[int, Trial] = field(default_factory=dict)

    def choose(self, rollout: int, in_play: int) -> int:
        if in_play != self.in_play:
            self.in_play = in_play
            self._begin_study()
        if not self.trials or self.trials[-1].issued == self.trials[-1].size:
            self.trials.append(self.next_trial())
        trial = self.trials[-1]
        trial.issued += 1
        self.trial_of[rollout] = trial
        return trial.candidate

    def observe(self, rollout: int, candidate: int, reward: int) -> None:
        trial = self.trial_of.pop(rollout)
        trial.rewards += 1
        trial.total += reward
        if trial.done:
            self._tell(trial)

    def next_trial(self) -> Trial:
        ask = self.study.ask(self.space)
        levers = ask.params["instruction"], ask.params["demonstrations"]
        return Trial(LEVERS.index(levers), self.minibatch, ask=ask)

    def pick(self) -> int:
        done = [trial for trial in self.trials if trial.done]
        return max(done, key=lambda trial: trial.value).candidate if done else 0

    def _begin_study(self) -> None:
        versions = np.array(LEVERS[: self.in_play]).max(axis=0).tolist()
        self.space: dict[str, BaseDistribution] = {
            lever: CategoricalDistribution(range(1, count + 1))
            for lever, count in zip(("instruction", "demonstrations"), versions, strict=True)
        }
        seed = int(self.rng.integers(2**31))
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in self.trials:
            trial.ask = None
            if trial.done:
                self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        if trial.ask is not None:
            self.study.tell(trial.ask, trial.value)
            return
        levers = dict(zip(self.space, LEVERS[trial.candidate], strict=True))
        self.study.add_trial(
            create_trial(params=levers, distributions=self.space, value=trial.value)
        )


@dataclass(eq=False)
class DspyLoop(Tpe):
    """`dspy.MIPROv2`: minibatches of 35, the baseline and every fifth trial's leader in full.

    The leader has the highest mean of its minibatches' means among those not yet evaluated in full,
    and that evaluation, of 100 examples, is one more trial to TPE. The pick is the best of them.
    """

    minibatch: int = 35
    full: int = 100
    trials_per_full: int = 5
    asked: int = 0

    def next_trial(self) -> Trial:
        if not self.trials:
            return Trial(0, self.full)
        if self.asked == self.trials_per_full and (leader := self._leader()) is not None:
            self.asked = 0
            return Trial(leader, self.full)
        self.asked = min(self.asked + 1, self.trials_per_full)
        return super().next_trial()

    def pick(self) -> int:
        full = [trial for trial in self.trials if trial.done and trial.size == self.full]
        return max(full, key=lambda trial: trial.value).candidate if full else 0

    def _leader(self) -> int | None:
        evaluated = {trial.candidate for trial in self.trials if trial.size == self.full}
        means: dict[int, list[float]] = {}
        for trial in self.trials:
            if trial.done and trial.candidate not in evaluated:
                means.setdefault(trial.candidate, []).append(trial.value)
        return max(means, key=lambda k: float(np.mean(means[k])), default=None)


@dataclass(eq=False)
class Ours:
    """The package's own `plan` and `choose`, on rewards by stretch of the traffic."""

    rng: np.random.Generator
    rollouts: int
    settings: SelectionSettings = field(default_factory=SelectionSettings)
    scales: Scales = DEFAULT_SCALES
    in_play: int = 0
    unseen: int = 0

    def __post_init__(self) -> None:
        stretches = math.ceil(self.rollouts / STRETCH)
        self.counts = np.zeros((CANDIDATES, stretches))
        self.sums = np.zeros((CANDIDATES, stretches))
        self.flight = np.zeros(CANDIDATES)
        self.plan: Plan | None = None
        self.belief: Posterior | None = None

    def choose(self, rollout: int, in_play: int) -> int:
        if self.plan is None or in_play != self.in_play or self.unseen >= REWARDS_PER_PLAN:
            self.in_play, self.unseen = in_play, 0
            self.plan = self._planned(rollout)
        choice = choose(
            self.plan,
            duel=None,
            expected_deviation=0.0,
            settings=self.settings,
            promotion=PromotionSettings(),
            rng=self.rng,
        )
        chosen = IDS.index(choice.candidate_id)
        self.flight[chosen] += 1
        return chosen

    def observe(self, rollout: int, candidate: int, reward: int) -> None:
        self.counts[candidate, rollout // STRETCH] += 1
        self.sums[candidate, rollout // STRETCH] += reward
        self.flight[candidate] -= 1
        self.unseen += 1

    def pick(self) -> int:
        return int(self.belief.mean.argmax()) if self.belief else 0

    def _planned(self, rollout: int) -> Plan:
        stretches = slice(rollout // STRETCH + 1)
        evidence = Evidence(
            arms=ARMS[: self.in_play],
            counts=self.counts[: self.in_play, stretches],
            sums=self.sums[: self.in_play, stretches],
            square_sum=float(self.sums.sum()),
            pending=self.flight[: self.in_play],
        )
        self.belief = posterior(evidence, scales=self.scales)
        return plan(
            evidence,
            belief=self.belief,
            active=IDS[: self.in_play],
            champion_id=IDS[0],
            settings=self.settings,
            rng=self.rng,
        )


POLICIES: Mapping[str, Callable[[np.random.Generator, int], Policy]] = {
    "ours": Ours,
    "ours, cautious": partial(Ours, scales=Scales(caution=0.02)),
    "ours, careful": partial(Ours, settings=SelectionSettings(exploration=Exploration.CAREFUL)),
    "ours, bold": partial(Ours, settings=SelectionSettings(exploration=Exploration.BOLD)),
    "uniform": Tally,
    "UCB1": Ucb1,
    "Beta Thompson": BetaThompson,
    "epsilon-greedy": EpsilonGreedy,
    "track-and-stop": TrackAndStop,
    "halving": SuccessiveHalving,
    "TPE, DSPy loop": DspyLoop,
    "TPE online": Tpe,
}
