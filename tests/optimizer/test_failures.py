"""Whether candidates fail more often than the baseline: by their shares of the traffic."""

from __future__ import annotations

import numpy as np
import pytest

from prefect_mipro.models.rollouts import FailedRollout
from prefect_mipro.optimizer.failures import (
    PROBATION_SHARE,
    RETIRE_EVIDENCE,
    failure_evidence,
    on_probation,
    with_probation,
)

SHARES = {"base": 0.5, "a": 0.25, "b": 0.25}


def failed(*candidate_ids: str, shares: dict[str, float] | None = None) -> list[FailedRollout]:
    return [FailedRollout(candidate_id=i, shares=shares or SHARES) for i in candidate_ids]


def evidence(failures: list[FailedRollout], champion_id: str = "base") -> dict[str, float]:
    ids = ["base", "a", "b"]
    return dict(failure_evidence(failures, ids, baseline_id="base", champion_id=champion_id))


def test_without_failures_there_is_no_evidence() -> None:
    assert evidence([]) == {"a": 1.0, "b": 1.0}


def test_a_candidate_whose_calls_alone_fail_is_retired_after_a_few() -> None:
    assert evidence(failed("a", "a"))["a"] < RETIRE_EVIDENCE
    assert evidence(failed("a", "a", "a", "a"))["a"] > RETIRE_EVIDENCE


def test_failures_of_others_are_no_evidence_against_it() -> None:
    assert evidence(failed("a", "a", "a"))["b"] == 1.0


def test_a_baseline_that_fails_as_often_clears_it() -> None:
    assert evidence(failed("base", "a", "base") * 20)["a"] < 1.0


def test_a_fault_that_hits_every_prompt_is_no_evidence_against_the_one_that_serves_most() -> None:
    leading = {"base": 0.02, "a": 0.98}
    assert evidence(failed(*["a"] * 40, shares=leading))["a"] < RETIRE_EVIDENCE


def test_a_champion_is_compared_with_the_baseline_and_others_with_both() -> None:
    found = evidence(failed("b", "b", "b", "b"), champion_id="b")
    assert found["b"] > RETIRE_EVIDENCE
    assert found["a"] < 1.0


def test_a_candidate_without_traffic_has_no_evidence_against_it() -> None:
    assert evidence(failed("a", "a", "a", shares={"base": 1.0}))["a"] == 1.0


def test_the_first_failure_puts_on_probation_and_new_candidates_with_it() -> None:
    def held(failures: list[FailedRollout], against: dict[str, float]) -> frozenset[str]:
        return on_probation(
            failures, against, unanswered={"b"}, baseline_id="base", champion_id="base"
        )

    assert held(failed("a"), {"a": 3.0, "b": 1.0, "c": 1.0}) == {"a", "b"}
    assert held(failed("retired"), {"a": 1.0, "b": 1.0}) == {"b"}
    assert held(failed("base"), {"a": 1.0, "b": 1.0}) == set()
    assert held([], {"a": 1.0, "b": 1.0}) == set()


def test_probation_caps_the_share_and_the_others_get_the_rest() -> None:
    shares = with_probation(np.array([0.5, 0.3, 0.2]), [False, True, False], champion=0)
    assert shares.tolist() == pytest.approx([0.95 * 5 / 7, PROBATION_SHARE, 0.95 * 2 / 7])
    assert with_probation(np.array([0.0, 1.0]), [False, True], champion=0).tolist() == [0.95, 0.05]


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_equal_failures_rarely_retire_a_candidate(share: float) -> None:
    """By Ville's inequality at most 5 % of them, however often one looks."""
    rng = np.random.default_rng(7)
    shares = {"base": 1.0 - share, "a": share}
    retired = 0
    for _ in range(200):
        owners = np.where(rng.random(60) < share, "a", "base")
        failures = failed(*owners.tolist(), shares=shares)
        looks = (evidence(failures[:n])["a"] for n in range(1, 61, 3))
        retired += any(e_value >= RETIRE_EVIDENCE for e_value in looks)
    assert retired <= 10
