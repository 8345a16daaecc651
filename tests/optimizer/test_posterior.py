"""The posterior is what Bayes' rule says, shares what levers share, and never breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefect_mipro.models.candidates import Arm, Statistics
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import (
    DEFAULT_SCALES,
    LARGEST_VARIANCE,
    MULTIPLE_LOG_PRIOR,
    MULTIPLES,
    SMALLEST_VARIANCE,
    Posterior,
    Scales,
    posterior,
)
from tests.optimizer.arms import arm, believed, block, grid


def uneven_grid(seed: int = 0) -> list[Arm]:
    rng = np.random.default_rng(seed)
    return [
        arm(i, d, rewards=int(rng.integers(0, 30)), mean=float(rng.uniform(0.2, 0.8)))
        for i in range(1, 5)
        for d in range(1, 4)
    ]


@dataclass
class Rewards:
    """Every single reward of a session: whose it is, of which stretch, and how much."""

    arms: list[Arm]
    rows: list[int]
    stretches: list[int]
    values: list[float]

    @classmethod
    def of(cls, arms: list[Arm], *, stretches: int, seed: int, spread: float = 0.2) -> Rewards:
        rng = np.random.default_rng(seed)
        means = rng.normal(0.5, spread, len(arms))
        rows = rng.integers(0, len(arms) - 1, 60)
        return cls(
            arms,
            rows.tolist(),
            rng.integers(0, stretches, 60).tolist(),
            (rng.random(60) < means[rows]).astype(float).tolist(),
        )

    def evidence(self) -> Evidence:
        cells: dict[tuple[int, int], list[float]] = {}
        for row, stretch, value in zip(self.rows, self.stretches, self.values, strict=True):
            cells.setdefault((row, stretch), []).append(value)
        return Evidence.of(
            self.arms,
            [
                block(
                    self.arms[row].candidate_id,
                    1 + 50 * stretch,
                    rewards=len(values),
                    mean=sum(values) / len(values),
                )
                for (row, stretch), values in cells.items()
            ],
        )

    def brute_force(
        self, scales: Scales, variance: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bayes' rule on all rewards at once: one row per reward, one column per effect."""
        arms = self.arms
        versions = sorted({(lever, v) for a in arms for lever, v in enumerate(a.levers)})
        effects = np.array(
            [
                [1.0]
                + [float(a.levers[lever] == v) for lever, v in versions]
                + [float(a is b) for b in arms]
                for a in arms
            ]
        )
        spread = [scales.common]
        spread += [scales.lever] * len(versions) + [scales.own] * len(arms)
        own = effects @ np.diag(np.square(spread)) @ effects.T * variance
        level = (sum(self.values) + 1) / (len(self.values) + 2)
        prior = level - scales.caution * np.array([sum(v > 1 for v in a.levers) for a in arms])
        rows, stretches = np.array(self.rows), np.array(self.stretches)
        together = (stretches[:, None] == stretches) * scales.stretch**2 * variance
        noise = together + variance * np.eye(len(rows))
        surprise = np.array(self.values) - prior[rows]
        means, covariances, likelihoods = [], [], []
        for multiple in MULTIPLES:
            cov = multiple**2 * own
            seen = cov[np.ix_(rows, rows)] + noise
            gain = cov[:, rows] @ np.linalg.inv(seen)
            means.append(prior + gain @ surprise)
            covariances.append(cov - gain @ cov[rows])
            fit = surprise @ np.linalg.solve(seen, surprise)
            likelihoods.append(-0.5 * (np.linalg.slogdet(seen)[1] + fit))
        weights = np.exp(MULTIPLE_LOG_PRIOR + likelihoods - np.max(likelihoods))
        weights /= weights.sum()
        mean = weights @ np.array(means)
        apart = np.array(means) - mean
        covariance = np.einsum("m,mij->ij", weights, covariances)
        return mean, covariance + np.einsum("m,mi,mj->ij", weights, apart, apart)


@pytest.mark.parametrize("stretches", [1, 4])
@pytest.mark.parametrize("spread", [0.05, 0.3])
@pytest.mark.parametrize(
    "scales", [DEFAULT_SCALES, Scales(lever=0.4, own=0.2, stretch=0.5, caution=0.05)]
)
def test_it_is_bayes_rule_on_every_single_reward(
    scales: Scales, spread: float, stretches: int
) -> None:
    rewards = Rewards.of(grid(3, 3), stretches=stretches, seed=4, spread=spread)
    without_stretches = replace(scales, stretch=0.0) if stretches == 1 else scales
    belief = posterior(rewards.evidence(), scales=scales)
    mean, covariance = rewards.brute_force(without_stretches, belief.reward_variance)
    assert belief.mean == pytest.approx(mean, abs=1e-9)
    assert belief.covariance == pytest.approx(covariance, abs=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_95_percent_intervals_hold_the_truth_95_percent_of_the_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = []
    for _ in range(200):
        sd = 0.5
        instructions, sets = rng.normal(0, DEFAULT_SCALES.lever * sd, (2, 4))
        own = rng.normal(0, DEFAULT_SCALES.own * sd, (4, 4))
        truth = np.clip(0.5 + instructions[:, None] + sets + own, 0, 1)
        counts = rng.integers(0, 25, (4, 4))
        wins = rng.binomial(counts, truth)
        arms = [
            arm(i + 1, d + 1, rewards=int(n), mean=int(wins[i, d]) / max(1, int(n)))
            for (i, d), n in np.ndenumerate(counts)
        ]
        belief = believed(arms)
        for a, value in zip(arms, truth.ravel(), strict=True):
            low, high = belief.interval(a.candidate_id)
            held.append(low <= value <= high)
    assert 0.93 <= np.mean(held) <= 0.98


def test_intervals_hold_the_truth_where_effects_are_very_large() -> None:
    """A baseline of 0.08 that hardly runs any more, since demonstrations lift it to 0.75."""
    rng = np.random.default_rng(3)
    held = []
    for _ in range(150):
        demonstrations = np.concatenate([[0.08], rng.uniform(0.35, 0.75, 4)])
        truth = np.clip(demonstrations + rng.normal(0, 0.05, (4, 1)), 0.03, 0.97)
        truth[0, 0] = 0.08
        counts = rng.integers(4, 12, truth.shape)
        counts[0, 0] = 20
        counts[np.unravel_index(truth.argmax(), truth.shape)] = 200
        wins = rng.binomial(counts, truth)
        arms = [
            arm(i + 1, d + 1, rewards=int(n), mean=int(wins[i, d]) / int(n))
            for (i, d), n in np.ndenumerate(counts)
        ]
        belief = believed(arms)
        intervals = [belief.interval(a.candidate_id) for a in arms]
        held.append(
            [low <= t <= high for (low, high), t in zip(intervals, truth.ravel(), strict=True)]
        )
    assert np.mean(held, axis=0)[0] >= 0.93
    assert 0.94 <= np.mean(held) <= 0.99


def test_candidates_learn_from_those_they_share_a_lever_with() -> None:
    arms = [arm(1, 1, rewards=40, mean=0.3), arm(2, 2, rewards=40, mean=0.8), arm(1, 2), arm(3, 3)]
    belief = believed(arms)
    assert belief.mean[0] < belief.mean[2] < belief.mean[1]
    assert belief.covariance[2, 2] < belief.covariance[3, 3]


def test_the_order_of_the_arms_does_not_matter() -> None:
    arms = uneven_grid()
    there, back = believed(arms), believed(arms[::-1])
    assert back.mean[::-1] == pytest.approx(there.mean)
    assert back.covariance[::-1, ::-1] == pytest.approx(there.covariance)
    assert back.interval("2.3") == pytest.approx(there.interval("2.3"))


def test_few_rewards_are_shrunk_and_many_speak_for_themselves() -> None:
    few = believed([arm(1, 1, rewards=50, mean=0.5), arm(1, 2, rewards=2, mean=1.0)])
    many = believed([arm(1, 1, rewards=50, mean=0.5), arm(1, 2, rewards=5_000, mean=0.9)])
    assert 0.5 < few.mean[1] < 0.7
    assert many.mean[1] == pytest.approx(0.9, abs=0.005)


def test_rewards_that_wait_do_not_change_the_belief() -> None:
    rewarded = [arm(1, 1, rewards=20, mean=0.5), arm(2, 1, rewards=20, mean=0.6)]
    waiting = [arm(1, 1, rewards=20, mean=0.5), arm(2, 1, rewards=20, mean=0.6, in_flight=9)]
    assert believed(waiting).mean == pytest.approx(believed(rewarded).mean)
    assert believed(waiting).covariance == pytest.approx(believed(rewarded).covariance)


def test_a_bad_stretch_of_the_traffic_does_not_count_against_those_who_served_it() -> None:
    """All earn half as much in the second stretch, where only the second candidate is new."""
    arms = [arm(1, 1), arm(1, 2)]
    drifting = [
        block("1.1", 1, rewards=400, mean=0.8),
        block("1.1", 51, rewards=200, mean=0.4),
        block("1.2", 51, rewards=200, mean=0.4),
    ]
    pooled = believed([arm(1, 1, rewards=600, mean=2 / 3), arm(1, 2, rewards=200, mean=0.4)])
    assert pooled.probability_better("1.2", than="1.1") < 0.01
    belief = posterior(Evidence.of(arms, drifting), scales=Scales(stretch=5.0))
    assert belief.probability_better("1.2", than="1.1") == pytest.approx(0.5, abs=0.05)


def test_caution_lowers_the_prior_of_levers_that_are_not_the_callers_own() -> None:
    arms = [arm(1, 1), arm(1, 2), arm(2, 2)]
    assert believed(arms, Scales(caution=0.02)).mean == pytest.approx([0.5, 0.48, 0.46])


# Odd statistics


def test_one_arm_without_rewards_is_the_prior() -> None:
    belief = believed([arm(1, 1)])
    assert belief.mean == pytest.approx([0.5])
    assert belief.reward_variance == LARGEST_VARIANCE
    assert belief.interval("1.1") == (0.0, 1.0)


def test_one_arm_with_rewards_is_near_their_mean() -> None:
    belief = believed([arm(1, 1, rewards=400, mean=0.25)])
    assert belief.mean[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_constant_rewards_favour_nobody(reward: float) -> None:
    belief = believed(grid(3, 3, rewards=10, mean=reward))
    assert belief.reward_variance == SMALLEST_VARIANCE
    assert belief.mean == pytest.approx(np.full(9, reward), abs=0.01)
    assert belief.probability_better("3.3", than="1.1") == pytest.approx(0.5, abs=0.01)


def test_arms_with_the_same_levers_and_huge_counts_are_no_trouble() -> None:
    twins = [
        Arm(
            candidate_id=name,
            levers=(1, 1),
            statistics=Statistics(rewards=10**9, reward_sum=5e8, reward_square_sum=5e8),
        )
        for name in ("a", "b")
    ]
    belief = believed([*twins, arm(2, 2)])
    assert np.all(np.isfinite(belief.draws(np.random.default_rng(0), 10)))
    assert belief.mean[:2] == pytest.approx([0.5, 0.5])


def test_without_prior_spread_everything_is_the_prior_mean() -> None:
    belief = believed(uneven_grid(), Scales(common=0.0, lever=0.0, own=0.0))
    assert np.all(belief.covariance == 0)
    assert belief.draws(np.random.default_rng(0), 1)[:, 0] == pytest.approx(belief.mean)


def test_fifty_arms_keep_a_proper_covariance() -> None:
    belief = believed(grid(5, 10, rewards=3, mean=0.4))
    assert np.linalg.eigvalsh(belief.covariance).min() > 0
    assert belief.covariance == pytest.approx(belief.covariance.T)


COUNTS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 500), st.floats(0, 1))


@settings(max_examples=100)
@given(st.lists(COUNTS, min_size=1, max_size=16, unique_by=lambda case: case[:2]))
def test_any_statistics_give_a_finite_belief(cases: list[tuple[int, int, int, float]]) -> None:
    belief = believed([arm(i, d, rewards=n, mean=mean) for i, d, n, mean in cases])
    assert np.all(np.isfinite(belief.mean))
    assert np.all(np.diag(belief.covariance) > 0)
    assert np.all(np.isfinite(belief.draws(np.random.default_rng(0), 4)))


# Questions to the belief


def hand_made() -> Posterior:
    return Posterior(
        arms=(arm(1, 1), arm(1, 2)),
        mean=np.array([0.5, 0.6]),
        covariance=np.array([[0.04, 0.01], [0.01, 0.02]]),
        reward_variance=0.25,
    )


def test_probability_better_accounts_for_what_the_two_share() -> None:
    z = 0.1 / math.sqrt(0.04 + 0.02 - 2 * 0.01)
    expected = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    assert hand_made().probability_better("1.2", than="1.1") == pytest.approx(expected)
    assert hand_made().probability_better("1.2", than="1.1", margin=0.1) == pytest.approx(0.5)


def test_probability_better_of_a_thing_than_itself_is_a_half() -> None:
    assert hand_made().probability_better("1.1", than="1.1") == pytest.approx(0.5)


def test_the_interval_has_the_asked_width_and_stays_within_rewards() -> None:
    low, high = hand_made().interval("1.1", level=0.68268949)
    assert (low, high) == pytest.approx((0.3, 0.7))
    low, high = hand_made().interval("1.2", level=0.9999)
    assert low == pytest.approx(0.05, abs=0.01)
    assert high == 1.0


def test_draws_have_the_posteriors_mean_and_covariance() -> None:
    belief = hand_made()
    drawn = belief.draws(np.random.default_rng(1), 40_000)
    assert drawn.shape == (2, 40_000)
    assert drawn.mean(axis=1) == pytest.approx(belief.mean, abs=0.005)
    assert np.cov(drawn) == pytest.approx(belief.covariance, abs=0.001)


def test_some_of_the_candidates_keep_what_is_believed_of_them() -> None:
    belief = believed(uneven_grid())
    some = belief.among(["3.2", "1.1"])
    assert [a.candidate_id for a in some.arms] == ["3.2", "1.1"]
    assert some.interval("3.2") == belief.interval("3.2")
    whole = belief.probability_better("3.2", than="1.1")
    assert some.probability_better("3.2", than="1.1") == whole


def test_awaited_rewards_narrow_the_belief_as_rewards_at_the_mean_would() -> None:
    belief = hand_made()
    pending = np.array([3.0, 0.0])
    awaiting = belief.awaiting(pending)
    precision = np.linalg.inv(belief.covariance) + np.diag(pending / 0.25)
    assert awaiting.covariance == pytest.approx(np.linalg.inv(precision))
    assert awaiting.mean is belief.mean
    assert belief.awaiting(np.zeros(2)) is belief


def test_temperature_scales_the_spread_of_draws_only() -> None:
    drawn = hand_made().draws(np.random.default_rng(1), 40_000, temperature=0.5)
    assert drawn.std(axis=1) == pytest.approx([0.1, math.sqrt(0.02) / 2], abs=0.002)
    assert drawn.mean(axis=1) == pytest.approx([0.5, 0.6], abs=0.005)


def test_probability_best_sums_to_one_and_agrees_with_probability_better() -> None:
    belief = hand_made()
    rng = np.random.default_rng(2)
    best = belief.probability_best(rng, active=["1.1", "1.2"], draws=20_000)
    assert best.sum() == pytest.approx(1.0)
    assert best[1] == pytest.approx(belief.probability_better("1.2", than="1.1"), abs=0.01)


def test_the_exploration_value_is_what_knowing_the_best_would_add() -> None:
    belief = hand_made()
    spread = math.sqrt(0.04 + 0.02 - 2 * 0.01)
    z = 0.1 / spread
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = spread * (density - z * 0.5 * math.erfc(z / math.sqrt(2)))
    value = belief.exploration_value(np.random.default_rng(3), active=["1.1", "1.2"], draws=40_000)
    assert value == pytest.approx(expected, abs=0.003)


def test_there_is_nothing_to_explore_with_one_active_candidate() -> None:
    belief = hand_made()
    value = belief.exploration_value(np.random.default_rng(3), active=["1.2"], draws=2_000)
    assert value == pytest.approx(0.0, abs=0.01)


def test_an_unknown_candidate_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"9\.9"):
        hand_made().index("9.9")
