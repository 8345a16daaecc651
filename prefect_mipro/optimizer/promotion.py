"""Promotion: who may challenge the champion, what the duel has shown, when it is over.

The posterior proposes and never proves: looked at again and again, "better with 95 %" is reached
by chance. A challenger is promoted only by a duel on fresh traffic, assigned by a fair coin and
judged by a betting e-process, which stays valid however often it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np

from prefect_mipro.config import PromotionSettings
from prefect_mipro.models.candidates import Duel, DuelObservation, DuelState
from prefect_mipro.optimizer.evidence import Vector
from prefect_mipro.optimizer.posterior import Posterior

# Shares of the largest bet that cannot lose everything: a little wealth on each needs no idea of
# the lift, should the prediction be far off.
BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7])
BETS_WEIGHT = 0.1
# The rest is bet on shares of the predicted lift. Who leads many candidates is predicted too much:
# 0.14 where the lift was 0.06, 0.13 among equals (`benchmarks.simulation`, hard and equal). With
# half on the prediction and half on BETS, 7.5 % of 200 sessions among equals promoted and 53 % of
# 100 hard ones; with these, 6.0 % and 48 % on the same seeds, and 3.6 % of 1,000 others.
SHARES_OF_LIFT = np.array([0.25, 0.5, 1.0])
SMALLEST_INFORMED_LIFT = 0.03
LOG_WEIGHTS = np.log(
    np.repeat(
        [BETS_WEIGHT / len(BETS), (1.0 - BETS_WEIGHT) / len(SHARES_OF_LIFT)],
        [len(BETS), len(SHARES_OF_LIFT)],
    )
)
# Informed bets begin as if so many rewards had been seen, of the variance of a fair coin's.
# Learning the variance takes the duels won within 1,000 rewards from 0.36 to 0.52 at a lift from
# 0.85 to 0.90, from 0.59 to 0.76 at one from 0.90 to 0.95, and changes nothing from 0.50 to 0.58
# (3,000 simulated duels each, half of the wealth on the lift itself). Between 3 and 20 the number
# hardly matters.
PSEUDO_REWARDS = 5
# A candidate of promising levers that has hardly run itself is no challenger yet: who leads on a
# few rewards is often not the best. With 15 in place of 10, sessions of 366 rollouts with large
# lifts earned 0.004 more each, and their champion was no worse (250 simulated).
REWARDS_TO_CHALLENGE = 15
# A duel begins for the candidate that is better than the champion with this probability.
TRIGGER_PROBABILITY = 0.9
# The session's rollouts for which a challenger rests after a duel without a winner.
COOL_DOWN_ROLLOUTS = 60
# A challenger is given up when it looks worse than the champion, or another one better than it.
# Giving way to a better one raises the champion's lift after 500 rollouts by a tenth to a third
# where large lifts are to be had, and promotes no oftener where none is (chosen by simulation).
REWARDS_TO_ABANDON = 60
PROBABILITY_TO_ABANDON = 0.4
REWARDS_TO_GIVE_WAY = 30
PROBABILITY_TO_GIVE_WAY = 0.8
# While the evidence is for a challenger it stays: fewer duels, each of which may promote falsely, a
# fifth fewer where lifts are small, and as many promotions there (100 simulated sessions).
LOG_EVIDENCE_TO_STAY = 0.0


def log_evidence(
    observations: Sequence[DuelObservation], *, predicted_lift: float, min_lift: float = 0.0
) -> Vector:
    """The log e-value against "the lift is `min_lift` or less", after each observation.

    With a fair coin, z = +-2 (reward - prediction) has the mean lift as its expectation, as long as
    the prediction was fixed before the reward. Under the null each wealth
    prod(1 + bet (z - min_lift)) is a nonnegative supermartingale, if no bet can lose more than
    there is, and so is their mixture: a little over a grid of bets, the rest on those that shares
    of the predicted lift suggest for the variance seen so far (Waudby-Smith and Ramdas, "Estimating
    means of bounded random variables by betting", JRSS B 2024, sections 4 and 5). By Ville's
    inequality it ever reaches 1/alpha with probability alpha at most: one may look at any time.

    The observations stand in the order of the pins, up to the watermark. Every look then sees a
    beginning of one and the same sequence, and Ville's inequality is about all of that sequence:
    it does not matter when one looks, nor that successes are reported sooner than failures. In the
    order of arrival the rewards themselves would choose the sequence: a challenger whose failures
    come late would seem to fail seldom.

    Rollouts without a reward are left out. The null is then about those that get one, and assumes
    that a reward goes missing for the same rollouts whichever side serves them. A challenger whose
    failures time out more often than the champion's is not covered. Imputed rewards leave nothing
    out and need no assumption; the null is then about the mean with them.
    """
    lifts, largest = _lifts(observations)
    return _log_wealth(lifts - min_lift, largest + min_lift, expected=predicted_lift - min_lift)


def log_evidence_against(
    observations: Sequence[DuelObservation], *, predicted_lift: float, min_lift: float = 0.0
) -> Vector:
    """The log e-value against "the lift is `min_lift` or more": the mirrored process.

    It bets on a lift as far below `min_lift` as was predicted above it. Order and missing rewards
    are as for `log_evidence`.
    """
    lifts, largest = _lifts(observations)
    return _log_wealth(min_lift - lifts, largest - min_lift, expected=predicted_lift - min_lift)


def challenger(
    posterior: Posterior,
    *,
    active: Sequence[str],
    champion_id: str,
    duel: Duel | None,
    rollouts_now: int,
    settings: PromotionSettings,
) -> tuple[str, float] | None:
    """Who should challenge the champion now, and with which predicted lift; `None` for nobody.

    It is the candidate in play (`active`) with the highest mean, once it is likely enough to be
    better by more than `min_lift` and there are enough rewards overall. A dethroned champion may
    challenge back like any other: that is how a promotion is rolled back. `duel` is the session's
    newest; its challenger, unless it is the champion now, rests for a cool-down after it, counted
    in rollouts of the session (`rollouts_now` so far).
    """
    rewards = sum(arm.statistics.rewards for arm in posterior.arms)
    if not settings.enabled or rewards < settings.min_rewards:
        return None
    if duel and duel.state is DuelState.RUNNING:
        return None
    best = _leader(posterior, among=set(active) - {champion_id})
    if best is None or (duel and _rests(best, duel, rollouts_now, settings)):
        return None
    chance = posterior.probability_better(best, than=champion_id, margin=settings.min_lift)
    if chance <= TRIGGER_PROBABILITY:
        return None
    lift = posterior.mean[posterior.index(best)] - posterior.mean[posterior.index(champion_id)]
    return best, float(lift)


def verdict(
    duel: Duel,
    observations: Sequence[DuelObservation],
    posterior: Posterior,
    *,
    active: Sequence[str],
    awaited: int,
    settings: PromotionSettings,
) -> DuelState:
    """How the duel stands. What was proven first counts, however it went on.

    Won and lost are proven; a duel also ends when it is long enough, when the posterior sees no
    hope, or when one of its sides is no longer in play (`active`). It is not long enough before
    all of it is seen: `awaited` of its rollouts are not among the observations yet, but may be.
    """
    if duel.state is not DuelState.RUNNING:
        return duel.state
    lifts = {"predicted_lift": duel.predicted_lift, "min_lift": settings.min_lift}
    evidence = log_evidence(observations, **lifts)
    against = log_evidence_against(observations, **lifts)
    proven = _proven(evidence, against, alpha=settings.alpha)
    if proven:
        return proven
    if duel.rollouts >= settings.max_rollouts and not awaited:
        return DuelState.EXPIRED
    if not {duel.champion_id, duel.challenger_id} <= set(active):
        return DuelState.ABANDONED
    if _hopeless(duel, evidence, posterior, active, settings):
        return DuelState.ABANDONED
    return DuelState.RUNNING


def detectable_lift(rewards: int, *, alpha: float, sd: float) -> float:
    """The lift that a duel of so many rewards proves about half of the time. At most 1.

    `sd` is that of a reward around its prediction. The best bet's wealth grows by lift^2 / (8 sd^2)
    per reward in expectation; that the best moment counts makes up for not knowing that bet. Within
    10 % of the lift that half of 300 simulated duels prove, predicted right or at twice its size,
    for alpha 0.01 and 0.05, sd 0.25 to 0.5 and 300 to 1,000 rewards; up to 13 % too small with 100
    rewards, and up to a third too large for alpha 0.2.
    """
    if rewards <= 0:
        return 1.0
    return min(1.0, sd * math.sqrt(8.0 * math.log(1.0 / alpha) / rewards))


def _lifts(observations: Sequence[DuelObservation]) -> tuple[Vector, Vector]:
    """Unbiased for the lift, one per observation, and how far from 0 each could have been."""
    reward = np.array([o.reward for o in observations], dtype=np.float64)
    prediction = np.array([o.predicted_reward for o in observations], dtype=np.float64)
    sign = np.where([o.is_challenger for o in observations], 2.0, -2.0)
    return sign * (reward - prediction), 2.0 * np.maximum(prediction, 1.0 - prediction)


def _log_wealth(gains: Vector, largest_loss: Vector, *, expected: float) -> Vector:
    """The log wealth of the mixture of bets after each gain, of which none is below -largest_loss.

    Each bet depends on earlier gains alone.
    """
    squares = np.concatenate([[0.0], np.square(gains).cumsum()])[: len(gains)]
    variance = (squares + PSEUDO_REWARDS) / (np.arange(len(gains)) + PSEUDO_REWARDS)
    lifts = np.maximum(SHARES_OF_LIFT * expected, SMALLEST_INFORMED_LIFT)
    informed = np.minimum(np.outer(lifts, 1.0 / variance), BETS[-1] / largest_loss)
    bets = np.concatenate([np.outer(BETS, 1.0 / largest_loss), informed])
    wealths = np.log1p(bets * gains).cumsum(axis=1)
    return np.asarray(np.logaddexp.reduce(wealths + LOG_WEIGHTS[:, None], axis=0))


def _proven(evidence: Vector, against: Vector, *, alpha: float) -> DuelState | None:
    won, lost = evidence >= -math.log(alpha), against >= -math.log(alpha)
    ended = won | lost
    if not ended.any():
        return None
    return DuelState.WON if won[ended.argmax()] else DuelState.LOST


def _leader(posterior: Posterior, *, among: Set[str]) -> str | None:
    """The candidate with the highest mean among those with rewards of their own."""
    means = {
        arm.candidate_id: mean
        for arm, mean in zip(posterior.arms, posterior.mean, strict=True)
        if arm.statistics.rewards >= REWARDS_TO_CHALLENGE and arm.candidate_id in among
    }
    return max(means, key=means.__getitem__, default=None)


def _rests(candidate_id: str, duel: Duel, rollouts_now: int, settings: PromotionSettings) -> bool:
    if candidate_id != duel.challenger_id:
        return False
    lasted = duel.rollouts / settings.traffic_share
    return rollouts_now < duel.rollouts_before + lasted + COOL_DOWN_ROLLOUTS


def _hopeless(
    duel: Duel,
    evidence: Vector,
    posterior: Posterior,
    active: Sequence[str],
    settings: PromotionSettings,
) -> bool:
    chance = posterior.probability_better(
        duel.challenger_id, than=duel.champion_id, margin=settings.min_lift
    )
    if len(evidence) >= REWARDS_TO_ABANDON and chance < PROBABILITY_TO_ABANDON:
        return True
    if len(evidence) < REWARDS_TO_GIVE_WAY or evidence[-1] > LOG_EVIDENCE_TO_STAY:
        return False
    rival = _leader(posterior, among=set(active) - {duel.champion_id, duel.challenger_id})
    if rival is None:
        return False
    overtaken = posterior.probability_better(rival, than=duel.challenger_id)
    return overtaken > PROBABILITY_TO_GIVE_WAY
