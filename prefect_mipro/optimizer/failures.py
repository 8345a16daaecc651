"""Failures: whether a candidate's calls fail more often than the caller's own prompt would.

A failed rollout is evidence in itself: had its failure nothing to do with the prompt, it would hit
the candidates in proportion to their shares of the traffic at that moment. Answered calls need not
be counted, and a change that makes every prompt fail is no evidence against any candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np

from prefect_mipro.models.rollouts import FailedRollout
from prefect_mipro.optimizer.evidence import Vector

# Alternatives: how much larger the odds of the candidate's failures are than its traffic share.
ODDS = np.array([3.0, 10.0, 100.0])
# An e-value of 20 is reached by chance with a probability of 5 % at most, however often one looks.
RETIRE_EVIDENCE = 20.0
# From here on a candidate is on probation. A small share also tells more: the fewer calls it gets,
# the less likely chance alone gives it the next failure.
PROBATION_EVIDENCE = 2.0
PROBATION_SHARE = 0.05


def failure_evidence(
    failures: Sequence[FailedRollout],
    candidate_ids: Sequence[str],
    *,
    baseline_id: str,
    champion_id: str,
) -> Mapping[str, float]:
    """The e-value against "it fails no more often than baseline and champion", by candidate.

    Under the null, a failure of candidate or references is the candidate's with probability q at
    most, where q is its part of their traffic when the rollout was pinned. A bet that its odds are
    `ODDS` times as large multiplies the wealth by odds / (1 + q (odds - 1)) at its own failures and
    by 1 / (1 + q (odds - 1)) at those of the references: a test martingale for each alternative, so
    that their mean is one too (Shafer, "Testing by betting", JRSS A 2021). The champion is compared
    with the baseline alone, the baseline with none.
    """
    found = {}
    for candidate_id in candidate_ids:
        references = {baseline_id, champion_id} - {candidate_id}
        if candidate_id != baseline_id:
            found[candidate_id] = _e_value(failures, candidate_id, references)
    return found


def on_probation(
    failures: Sequence[FailedRollout],
    evidence: Mapping[str, float],
    *,
    unanswered: Set[str],
    baseline_id: str,
    champion_id: str,
) -> frozenset[str]:
    """The candidates that get few calls: suspected ones, and new ones where others have failed.

    `unanswered` candidates have had no answer yet.
    """
    bitten = any(failure.candidate_id != baseline_id for failure in failures)
    suspects = {i for i, e_value in evidence.items() if e_value >= PROBATION_EVIDENCE}
    new = unanswered & evidence.keys() if bitten else set()
    return frozenset((suspects | new) - {champion_id})


def with_probation(shares: Vector, probation: Sequence[bool], *, champion: int) -> Vector:
    """The shares (K,) with those on probation capped; the others get the rest in proportion."""
    held = np.array(probation)
    limited = np.where(held, np.minimum(shares, PROBATION_SHARE), shares)
    free = np.where(held, 0.0, shares)
    if not free.any():
        free[champion] = 1.0
    return np.asarray(limited + (1.0 - limited.sum()) * free / free.sum())


def _e_value(failures: Sequence[FailedRollout], candidate_id: str, references: Set[str]) -> float:
    log_wealth = np.zeros(len(ODDS))
    for failure in failures:
        own = failure.candidate_id == candidate_id
        if not own and failure.candidate_id not in references:
            continue
        share = failure.shares.get(candidate_id, 0.0)
        both = share + sum(failure.shares.get(i, 0.0) for i in references)
        if share > 0.0:
            log_wealth -= np.log1p(share / both * (ODDS - 1.0))
            log_wealth += np.log(ODDS) * own
    return float(np.exp(log_wealth).mean())
