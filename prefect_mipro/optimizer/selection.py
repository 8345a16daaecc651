"""Which candidate serves the next rollout.

Every strategy ends in an explicit propensity vector over the candidates in play; the candidate is
drawn from exactly that vector, so what is logged with a rollout is what was done. The vector is
planned when enough new rewards have come; choosing only draws.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol

import numpy as np

from prefect_mipro.config import PromotionSettings, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Duel, DuelState
from prefect_mipro.optimizer.evidence import Evidence, Vector
from prefect_mipro.optimizer.failures import with_probation
from prefect_mipro.optimizer.posterior import Posterior
from prefect_mipro.optimizer.strategies import BOLDNESS, STRATEGIES, Situation

# A bet on a reward that is thought impossible could lose everything.
SMALLEST_PREDICTION = 0.02


class Chance(Protocol):
    """What a choice needs of a random number generator."""

    def random(self) -> float:
        """A number from 0 up to, but not including, 1."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """How the next rollouts are shared out, until enough is learned for another.

    `propensities` are those of the candidates `ids`, and sum to 1.
    """

    ids: tuple[str, ...]
    propensities: Vector

    @cached_property
    def of(self) -> Mapping[str, float]:
        """The propensity of each candidate."""
        return MappingProxyType(dict(zip(self.ids, self.propensities.tolist(), strict=True)))

    @cached_property
    def _bounds(self) -> list[float]:
        """Up to where in [0, 1] a number stands for each candidate."""
        sums = list(accumulate(self.of.values()))
        return [bound / sums[-1] for bound in sums]

    def draw(self, rng: Chance) -> str:
        """One of the candidates, with its propensity."""
        return self.ids[bisect_right(self._bounds, rng.random())]


@dataclass(frozen=True)
class Choice:
    """The candidate chosen for a rollout, with the probability that it was.

    `propensities` are those of all active candidates and sum to 1. A rollout of the running duel
    has its number and the reward predicted for it before it ran.
    """

    candidate_id: str
    propensity: float
    propensities: Mapping[str, float]
    duel_number: int | None = None
    predicted_reward: float | None = None


def plan(
    evidence: Evidence,
    *,
    belief: Posterior,
    active: Sequence[str],
    champion_id: str,
    settings: SelectionSettings,
    rng: np.random.Generator,
    probation: Set[str] = frozenset(),
) -> Plan:
    """Share the next rollouts out among the active candidates, of which the champion is one.

    `belief` is the posterior of the evidence. Candidates on `probation` get few calls, whatever
    the strategy (`optimizer.failures`).
    """
    rows = [belief.index(candidate_id) for candidate_id in active]
    situation = Situation(
        belief=belief.among(active),
        total_rewards=evidence.rewards,
        lever_rewards=evidence.lever_rewards()[rows],
        rewards=evidence.counts[rows].sum(axis=1),
        reward_sums=evidence.sums[rows].sum(axis=1),
        pending=evidence.pending[rows],
        champion=list(active).index(champion_id),
        settings=settings,
        boldness=BOLDNESS[settings.exploration],
    )
    shares = STRATEGIES[settings.strategy](situation, rng)
    if probation:
        held = [candidate_id in probation for candidate_id in active]
        shares = with_probation(shares, held, champion=situation.champion)
    return Plan(tuple(active), shares)


def choose(
    plan: Plan,
    *,
    duel: Duel | None,
    expected_deviation: float,
    settings: SelectionSettings,
    promotion: PromotionSettings,
    rng: Chance,
) -> Choice:
    """Draw a rollout's candidate.

    While a duel runs, a share of the rollouts belongs to it, up to its longest, and a fair coin
    decides between the two; the other rollouts go on exploring. The reported propensity is that
    over both ways.
    `expected_deviation` is that of the rollout's example (`optimizer.examples`).
    """
    usual = plan.of
    if duel is None or not _takes_traffic(duel, plan, settings, promotion):
        chosen = plan.draw(rng)
        return Choice(chosen, usual[chosen], usual)
    share = promotion.traffic_share
    pair = [i for i in plan.ids if i in (duel.champion_id, duel.challenger_id)]
    both = {i: share * 0.5 * (i in pair) + (1.0 - share) * usual[i] for i in plan.ids}
    if rng.random() >= share:
        chosen = plan.draw(rng)
        return Choice(chosen, both[chosen], both)
    chosen = pair[rng.random() >= 0.5]
    predicted = predicted_reward(duel, expected_deviation)
    return Choice(chosen, both[chosen], both, duel.number, predicted)


def predicted_reward(duel: Duel, expected_deviation: float) -> float:
    """The duel's mean so far, with one success and one failure added, and the example's deviation.

    Kept off 0 and 1 by `SMALLEST_PREDICTION`.
    """
    expected = (duel.reward_sum + 1.0) / (duel.rewards + 2.0) + expected_deviation
    return min(1.0 - SMALLEST_PREDICTION, max(SMALLEST_PREDICTION, expected))


def _takes_traffic(
    duel: Duel, plan: Plan, settings: SelectionSettings, promotion: PromotionSettings
) -> bool:
    return (
        duel.state is DuelState.RUNNING
        and duel.rollouts < promotion.max_rollouts
        and settings.strategy is not Strategy.FIXED
        and {duel.champion_id, duel.challenger_id} <= set(plan.ids)
    )
