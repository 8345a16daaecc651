"""Which candidate serves the next rollout.

Every strategy ends in an explicit propensity vector over the candidates in play; the candidate is
drawn from exactly that vector, so what is logged with a rollout is what was done. The vector is
planned when enough new rewards have come; choosing only draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefect_mipro.config import PromotionSettings, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Duel, DuelState
from prefect_mipro.optimizer.evidence import Evidence, Vector
from prefect_mipro.optimizer.posterior import DEFAULT_SCALES, Posterior, Scales, posterior
from prefect_mipro.optimizer.strategies import STRATEGIES, Situation

# A bet on a reward that is thought impossible could lose everything.
SMALLEST_PREDICTION = 0.02


@dataclass(frozen=True, eq=False)
class Plan:
    """How the next rollouts are shared out, until enough is learned for another.

    `propensities` are those of the candidates `ids`, and sum to 1.
    """

    ids: tuple[str, ...]
    propensities: Vector


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
    belief: Posterior | None = None,
    active: Sequence[str],
    champion_id: str,
    settings: SelectionSettings,
    rng: np.random.Generator,
    scales: Scales = DEFAULT_SCALES,
) -> Plan:
    """Share the next rollouts out among the active candidates, of which the champion is one.

    `belief` is the posterior of the evidence, where it is at hand. A caution that the settings
    state goes before that of the scales.
    """
    if belief is None:
        if settings.caution is not None:
            scales = replace(scales, caution=settings.caution)
        belief = posterior(evidence, scales=scales)
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
    )
    return Plan(tuple(active), STRATEGIES[settings.strategy](situation, rng))


def choose(
    plan: Plan,
    *,
    duel: Duel | None,
    expected_deviation: float,
    settings: SelectionSettings,
    promotion: PromotionSettings,
    rng: np.random.Generator,
) -> Choice:
    """Draw a rollout's candidate.

    While a duel runs, a share of the rollouts belongs to it and a fair coin decides between the
    two; the other rollouts go on exploring. The reported propensity is that over both ways.
    `expected_deviation` is that of the rollout's example (`optimizer.examples`).
    """
    usual = plan.propensities
    if duel is None or not _runs(duel, plan, settings):
        return _drawn(plan, usual, propensities=usual, rng=rng)
    coin = np.array([0.5 * (i in (duel.champion_id, duel.challenger_id)) for i in plan.ids])
    both = promotion.traffic_share * coin + (1.0 - promotion.traffic_share) * usual
    if rng.random() >= promotion.traffic_share:
        return _drawn(plan, usual, propensities=both, rng=rng)
    return replace(
        _drawn(plan, coin, propensities=both, rng=rng),
        duel_number=duel.number,
        predicted_reward=predicted_reward(duel, expected_deviation),
    )


def predicted_reward(duel: Duel, expected_deviation: float) -> float:
    """The duel's mean so far, with one success and one failure added, and the example's deviation.

    Kept off 0 and 1 by `SMALLEST_PREDICTION`.
    """
    expected = (duel.reward_sum + 1.0) / (duel.rewards + 2.0) + expected_deviation
    return min(1.0 - SMALLEST_PREDICTION, max(SMALLEST_PREDICTION, expected))


def _runs(duel: Duel, plan: Plan, settings: SelectionSettings) -> bool:
    return (
        duel.state is DuelState.RUNNING
        and settings.strategy is not Strategy.FIXED
        and {duel.champion_id, duel.challenger_id} <= set(plan.ids)
    )


def _drawn(plan: Plan, vector: Vector, *, propensities: Vector, rng: np.random.Generator) -> Choice:
    chosen = int(rng.choice(len(plan.ids), p=vector))
    return Choice(
        candidate_id=plan.ids[chosen],
        propensity=float(propensities[chosen]),
        propensities=dict(zip(plan.ids, propensities.tolist(), strict=True)),
    )
