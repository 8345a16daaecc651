"""The strategies: how each would share the next rollouts out among the candidates in play."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.config import Exploration, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Arm
from prefect_mipro.optimizer.evidence import Matrix, Vector
from prefect_mipro.optimizer.posterior import Posterior

DRAWS = 128
# Before this many rewards nothing is known: the champion, and a few others.
COLD_REWARDS = 20
COLD_ARMS = 4
# Before a candidate looks this much better on rewards of its own, exploration is capped.
PROMISING_PROBABILITY = 0.8
PROMISING_REWARDS = 30


@dataclass(frozen=True)
class Boldness:
    """The constants of exploration.

    `temperature` scales the posterior's standard deviation when drawing, `leader_share` is the
    top-two parameter beta, and `uniform_share` is spread evenly, against lock-in. A proposed lever
    version with fewer than `new_lever_rewards` rewards gets at most `new_lever_share`.
    """

    temperature: float = 0.5
    leader_share: float = 0.95
    uniform_share: float = 0.01
    new_lever_share: float = 0.4
    new_lever_rewards: int = 5


# Regret of each in `benchmarks.selection`: docs/benchmarks.md.
BOLDNESS: Mapping[Exploration, Boldness] = {
    Exploration.CAREFUL: Boldness(new_lever_share=0.1, new_lever_rewards=10),
    Exploration.BALANCED: Boldness(),
    Exploration.BOLD: Boldness(leader_share=0.8, uniform_share=0.02),
}


@dataclass(frozen=True, eq=False)
class Situation:
    """What a strategy knows about the K candidates in play.

    `rewards`, `reward_sums` and `pending` are (K,); `champion` is the position of the champion.
    `lever_rewards` are those of each candidate's lever versions (K, levers), whichever candidates
    earned them, and `total_rewards` those of all: the retired ones' included.
    """

    belief: Posterior
    total_rewards: float
    lever_rewards: Matrix
    rewards: Vector
    reward_sums: Vector
    pending: Vector
    champion: int
    settings: SelectionSettings
    boldness: Boldness = BOLDNESS[Exploration.BALANCED]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The candidates in play."""
        return self.belief.arms


class Sharing(Protocol):
    """A strategy: the probability of each candidate for a rollout, (K,), summing to 1."""

    def __call__(self, situation: Situation, rng: np.random.Generator) -> Vector: ...


def mipro(situation: Situation, rng: np.random.Generator) -> Vector:
    """Cold top-two Thompson sampling on the additive model, as an explicit distribution.

    p is the probability of having the highest draw. The leader serves with probability beta, else
    one draws again until another leads: beta p_k + (1 - beta) p_k sum_{j != k} p_j / (1 - p_j)
    (Russo, "Simple Bayesian algorithms for best-arm identification", Operations Research 2020).
    Its one half for beta finds the best candidate soonest; rollouts are somebody's traffic here, so
    that ours is near one: against 0.8 it saves some 10 of 98 mean rewards of
    regret over 2,000 rollouts, and the candidate found is as good.
    """
    if situation.total_rewards < COLD_REWARDS:
        return _limited(_cold_start(situation), situation)
    belief = situation.belief.awaiting(situation.pending)
    p = _win_shares(belief.draws(rng, DRAWS, temperature=situation.boldness.temperature))
    beta = situation.boldness.leader_share
    if len(p) > 1:
        odds = p / (1.0 - p)
        p = beta * p + (1.0 - beta) * p * (odds.sum() - odds)
    return _limited(_with_uniform_share(p / p.sum(), situation), situation)


def uniform(situation: Situation, rng: np.random.Generator) -> Vector:
    """The same for all."""
    return np.full(len(situation.arms), 1.0 / len(situation.arms))


def fixed(situation: Situation, rng: np.random.Generator) -> Vector:
    """Always the candidate that the settings name, or the champion where it is not in play."""
    ids = [arm.candidate_id for arm in situation.arms]
    named = situation.settings.candidate_id
    return _unit(len(ids), ids.index(named) if named in ids else situation.champion)


STRATEGIES: Mapping[Strategy, Sharing] = {
    Strategy.MIPRO: mipro,
    Strategy.UNIFORM: uniform,
    Strategy.FIXED: fixed,
}


def _cold_start(situation: Situation) -> Vector:
    """Half for the champion, half for at most four others, those that ran least."""
    count = len(situation.arms)
    served = situation.rewards + situation.pending
    others = [k for k in np.argsort(served, kind="stable") if k != situation.champion][:COLD_ARMS]
    if not others:
        return _unit(1, 0)
    shares = 0.5 * _unit(count, situation.champion)
    shares[others] = 0.5 / len(others)
    return shares


def _win_shares(drawn: NDArray[np.float64]) -> Vector:
    """How often each row is the highest; half a win is spread evenly, so that none is zero."""
    count, draws = drawn.shape
    wins = np.bincount(drawn.argmax(axis=0), minlength=count)
    return np.asarray((wins + 0.5 / count) / (draws + 0.5))


def _with_uniform_share(p: Vector, situation: Situation) -> Vector:
    share = situation.boldness.uniform_share
    return (1.0 - share) * p + share / len(p)


def _limited(p: Vector, situation: Situation) -> Vector:
    p = _limit_exploration(_limit_new(p, situation), situation)
    return np.asarray(p / p.sum())


def _limit_new(p: Vector, situation: Situation) -> Vector:
    """Cap the share of each new lever version; what is over goes to those of known levers.

    A candidate of levers that have served elsewhere is no risk, however new it is itself. Where
    large lifts are to be had, four tenths until 5 rewards cost nothing measurable over 2,000
    rollouts, a quarter costs some 4, and a tenth until 10 costs 18 +- 5, of some 85 mean rewards;
    where lifts are small none of them does.
    """
    limit = situation.boldness.new_lever_share
    levers = np.array([arm.levers for arm in situation.arms])
    new = (levers > 1) & (situation.lever_rewards < situation.boldness.new_lever_rewards)
    new[situation.champion] = False
    held = new.any(axis=1)
    limited = p.copy()
    for lever, version in {(b, levers[k, b]) for k, b in np.argwhere(new)}:
        members = held & (levers[:, lever] == version)
        share = limited[members].sum()
        if share > limit:
            limited[members] *= limit / share
    known = np.where(held, 0.0, p)
    known[situation.champion] += 1e-9
    return np.asarray(limited + (1.0 - limited.sum()) * known / known.sum())


def _limit_exploration(p: Vector, situation: Situation) -> Vector:
    """Let at most that share leave the champion until a candidate looks better than it."""
    champion, share = situation.champion, situation.settings.explore_share
    leaving = 1.0 - p[champion]
    if leaving <= share or _promising(situation):
        return p
    limited: Vector = p * (share / leaving)
    limited[champion] = 1.0 - share
    return limited


def _promising(situation: Situation) -> bool:
    belief = situation.belief
    champion_id = belief.arms[situation.champion].candidate_id
    return any(
        belief.probability_better(arm.candidate_id, than=champion_id) > PROMISING_PROBABILITY
        for arm, rewards in zip(belief.arms, situation.rewards, strict=True)
        if rewards >= PROMISING_REWARDS
    )


def _unit(count: int, position: int) -> Vector:
    vector = np.zeros(count)
    vector[position] = 1.0
    return vector
