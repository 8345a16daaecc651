"""Promotion: who may challenge the champion, what the duel has shown, when it is over.

The posterior proposes and never proves: looked at again and again, "better with 95 %" is reached
by chance. A challenger is promoted only by a duel on fresh traffic, assigned by a fair coin and
judged by a betting e-process, which stays valid however often it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.config import PromotionSettings
from prefect_mipro.models.candidates import Duel, DuelObservation, DuelState
from prefect_mipro.optimizer.posterior import Posterior

# Shares of the largest bet that cannot lose everything; the mixture needs no tuning to the lift.
BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7])
SMALLEST_INFORMED_LIFT = 0.03
# A candidate of promising levers that has hardly run itself is no challenger yet.
REWARDS_TO_CHALLENGE = 5
# A challenger is given up when it looks worse than the champion, or another one better than it.
# Giving way to a better one raises the champion's lift after 500 rollouts by a tenth to a third
# where large lifts are to be had, and promotes no oftener where none is (chosen by simulation).
REWARDS_TO_ABANDON = 60
PROBABILITY_TO_ABANDON = 0.4
REWARDS_TO_GIVE_WAY = 30
PROBABILITY_TO_GIVE_WAY = 0.8


def log_evidence(
    observations: Sequence[DuelObservation], *, predicted_lift: float
) -> NDArray[np.float64]:
    """The log e-value against "the challenger is no better", after each observation.

    With a fair coin, z = +-2 (reward - prediction) has the mean lift as its expectation, as long as
    the prediction was fixed before the reward. Under the null each wealth prod(1 + bet z) is a
    nonnegative supermartingale, and so is their mixture: half over a grid of bets, half on the one
    bet that the predicted lift suggests (Waudby-Smith and Ramdas, "Estimating means of bounded
    random variables by betting", JRSS B 2024, sections 3 and 4). By Ville's inequality it ever
    reaches 1/alpha with probability alpha at most.
    """
    reward = np.array([o.reward for o in observations], dtype=np.float64)
    prediction = np.array([o.predicted_reward for o in observations], dtype=np.float64)
    sign = np.where([o.is_challenger for o in observations], 2.0, -2.0)
    z = sign * (reward - prediction)
    largest_loss = 2.0 * np.maximum(prediction, 1.0 - prediction)
    grid = np.log1p(BETS[:, None] * z / largest_loss).cumsum(axis=1)
    informed_bet = np.minimum(max(predicted_lift, SMALLEST_INFORMED_LIFT), BETS[-1] / largest_loss)
    informed = np.log1p(informed_bet * z).cumsum()
    mixed = np.logaddexp.reduce(grid, axis=0) - math.log(len(BETS))
    return np.asarray(np.logaddexp(mixed, informed) - math.log(2.0))


def challenger(
    posterior: Posterior,
    *,
    champion_id: str,
    duel: Duel | None,
    rollouts_now: int,
    settings: PromotionSettings,
) -> tuple[str, float] | None:
    """Who should challenge the champion now, and with which predicted lift; `None` for nobody.

    It is the candidate with the highest mean, once it is likely enough to be better and there are
    enough rewards overall. `duel` is the session's newest; a challenger that did not win it rests
    for a cool-down, counted in rollouts of the session (`rollouts_now` so far).
    """
    rewards = sum(arm.statistics.rewards for arm in posterior.arms)
    if not settings.enabled or rewards < settings.min_rewards:
        return None
    if duel and duel.state is DuelState.RUNNING:
        return None
    best = _leader(posterior, without={champion_id})
    if best is None or (duel and _rests(best, duel, rollouts_now, settings)):
        return None
    if posterior.probability_better(best, than=champion_id) <= settings.trigger_probability:
        return None
    lift = posterior.mean[posterior.index(best)] - posterior.mean[posterior.index(champion_id)]
    return best, float(lift)


def verdict(
    duel: Duel,
    observations: Sequence[DuelObservation],
    posterior: Posterior,
    *,
    settings: PromotionSettings,
) -> DuelState:
    """How the duel stands. Evidence that once sufficed suffices, however it went on."""
    if duel.state is not DuelState.RUNNING:
        return duel.state
    evidence = log_evidence(observations, predicted_lift=duel.predicted_lift)
    if evidence.max(initial=-math.inf) >= -math.log(settings.alpha):
        return DuelState.WON
    if duel.rollouts >= settings.max_rollouts:
        return DuelState.EXPIRED
    if _hopeless(duel, len(observations), posterior):
        return DuelState.ABANDONED
    return DuelState.RUNNING


def detectable_lift(rollouts: int, *, alpha: float = 0.05, sd: float = 0.5) -> float:
    """The lift that a duel of so many rewards proves about half of the time. Rough.

    The best bet's wealth grows by lift^2 / (8 sd^2) per reward in expectation; the mixture pays
    about log 2 for not knowing it. At most 1.
    """
    if rollouts <= 0:
        return 1.0
    return min(1.0, sd * math.sqrt(8.0 * (math.log(1.0 / alpha) + math.log(2.0)) / rollouts))


def _leader(posterior: Posterior, *, without: Set[str]) -> str | None:
    """The candidate with the highest mean among those with rewards of their own."""
    means = {
        arm.candidate_id: mean
        for arm, mean in zip(posterior.arms, posterior.mean, strict=True)
        if arm.statistics.rewards >= REWARDS_TO_CHALLENGE and arm.candidate_id not in without
    }
    return max(means, key=means.__getitem__, default=None)


def _rests(candidate_id: str, duel: Duel, rollouts_now: int, settings: PromotionSettings) -> bool:
    if candidate_id != duel.challenger_id:
        return False
    lasted = duel.rollouts / settings.traffic_share
    return rollouts_now < duel.rollouts_before + lasted + settings.cool_down_rollouts


def _hopeless(duel: Duel, rewards: int, posterior: Posterior) -> bool:
    sides = {duel.champion_id, duel.challenger_id}
    if not sides <= {arm.candidate_id for arm in posterior.arms}:
        return True
    chance = posterior.probability_better(duel.challenger_id, than=duel.champion_id)
    if rewards >= REWARDS_TO_ABANDON and chance < PROBABILITY_TO_ABANDON:
        return True
    rival = _leader(posterior, without=sides)
    if rival is None or rewards < REWARDS_TO_GIVE_WAY:
        return False
    overtaken = posterior.probability_better(rival, than=duel.challenger_id)
    return overtaken > PROBABILITY_TO_GIVE_WAY
