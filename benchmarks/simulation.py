"""Simulated prompts and traffic: the surfaces on which the optimizer's benchmarks run.

A candidate is an instruction and a set of demonstrations. The chance that it answers an example is
logistic in the sum of the candidate's own score, the example's difficulty, and how well the example
suits each of the two levers. Sessions begin with 3 x 4 candidates; a lever is added every 40
rollouts until there are 6 x 7. Rewards are 0 or 1 and come late.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.models.candidates import Arm, Statistics

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

INSTRUCTIONS = 6
DEMONSTRATION_SETS = 7
CANDIDATES = INSTRUCTIONS * DEMONSTRATION_SETS
FIRST_INSTRUCTIONS = 3
FIRST_DEMONSTRATION_SETS = 4
ROLLOUTS_PER_LEVER = 40

DIFFICULTY_SD = 1.5
SUITS_SD = 0.7
MEAN_DELAY = 16
LONGEST_DELAY = 64


class Scenario(StrEnum):
    """How much there is to be found, and how."""

    HARD = "hard"
    RICH = "rich"
    NONADDITIVE = "nonadd"
    WEAK_PROPOSER = "weak"
    EQUAL = "equal"
    WORSE = "worse"


@dataclass(frozen=True)
class Effects:
    """Spread of what a lever and a pair of levers add to the score (logits), and their mean."""

    instruction: float = 0.0
    demonstrations: float = 0.0
    pair: float = 0.0
    mean: float = 0.0


# Over 2,000 surfaces, in points of the success rate: spread of the candidates, the best one's lift
# over the baseline, and how many of the others are better than the baseline. Hard: 3.9, +10.7,
# 70 %; rich: 7.5, +20.6, 73 %; nonadd: 6.5, +16.8, 64 %; weak: 4.9, +4.6, 16 % (mean -5.4).
EFFECTS = {
    Scenario.HARD: Effects(0.178, 0.21, 0.084, 0.082),
    Scenario.RICH: Effects(0.37, 0.43, 0.085, 0.185),
    Scenario.NONADDITIVE: Effects(0.12, 0.12, 0.40, 0.09),
    Scenario.WEAK_PROPOSER: Effects(0.22, 0.26, 0.10, -0.20),
    Scenario.EQUAL: Effects(),
    Scenario.WORSE: Effects(0.20, 0.20),
}


def _introduced() -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Levers of each candidate in the order in which they enter, and how many are in play then.

    The second has one number for each stretch of `ROLLOUTS_PER_LEVER` rollouts.
    """
    instructions, sets = FIRST_INSTRUCTIONS, FIRST_DEMONSTRATION_SETS
    levers = [(i, d) for i in range(1, instructions + 1) for d in range(1, sets + 1)]
    in_play = [len(levers)]
    while len(levers) < CANDIDATES:
        if instructions - FIRST_INSTRUCTIONS <= sets - FIRST_DEMONSTRATION_SETS:
            instructions += 1
            levers += [(instructions, d) for d in range(1, sets + 1)]
        else:
            sets += 1
            levers += [(i, sets) for i in range(1, instructions + 1)]
        in_play.append(len(levers))
    return tuple(levers), tuple(in_play)


LEVERS, IN_PLAY = _introduced()
IDS = tuple(f"{instruction}.{demonstrations}" for instruction, demonstrations in LEVERS)


@dataclass(frozen=True, eq=False)
class Surface:
    """The truth about 42 candidates, in the order in which they enter; the first is the baseline.

    `scores` are in logits; `means` are the chances of reward over all examples.
    """

    scores: Vector
    means: Vector

    @classmethod
    def of(cls, scenario: Scenario, rng: np.random.Generator) -> Surface:
        """Draw one."""
        effects = EFFECTS[scenario]
        instructions = rng.normal(effects.mean, effects.instruction, INSTRUCTIONS)
        sets = rng.normal(effects.mean, effects.demonstrations, DEMONSTRATION_SETS)
        pairs = rng.normal(0.0, effects.pair, (INSTRUCTIONS, DEMONSTRATION_SETS))
        if scenario is Scenario.WORSE:
            instructions, sets = -np.abs(instructions), -np.abs(sets)
        instructions[0] = sets[0] = pairs[0, 0] = 0.0
        grid = rng.normal(0.0, 0.3) + instructions[:, None] + sets + pairs
        scores = np.array([grid[i - 1, d - 1] for i, d in LEVERS])
        return cls(scores, _mean_chance(scores))


@dataclass(frozen=True, eq=False)
class Traffic:
    """What would happen to T rollouts, whichever candidates serve them; the same for all policies.

    `rewards` is (T, 42), 0 or 1. `in_play[t]` is how many candidates rollout t may be given to: the
    first so many. `arrivals[t]` are the rollouts whose rewards come just before rollout t is
    pinned, in the order of their coming; a list more, `arrivals[T]`, has all the others.
    `examples[t]` names the example; with fresh traffic each is seen once.
    """

    surface: Surface
    rewards: NDArray[np.uint8]
    examples: NDArray[np.int64]
    delays: NDArray[np.int64]
    in_play: NDArray[np.int64]
    arrivals: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        seed: int,
        *,
        rollouts: int = 2_000,
        recurring_examples: int | None = None,
        mean_delay: int = MEAN_DELAY,
    ) -> Traffic:
        """A surface and its traffic. With `recurring_examples` a pool of so many comes again.

        The surface's means stay those over all examples, or become those over the pool.
        """
        rng = np.random.default_rng([seed, *scenario.encode()])
        surface = Surface.of(scenario, rng)
        pool = recurring_examples or rollouts
        chances = _chances(surface.scores, pool, rng)
        if recurring_examples:
            surface = Surface(surface.scores, chances.mean(axis=0))
            examples = rng.integers(0, pool, rollouts)
        else:
            examples = np.arange(rollouts)
        rewards = (rng.random((rollouts, 1)) < chances[examples]).astype(np.uint8)
        delays = np.minimum(rng.geometric(1.0 / mean_delay, rollouts), LONGEST_DELAY)
        stretches = np.minimum(np.arange(rollouts) // ROLLOUTS_PER_LEVER, len(IN_PLAY) - 1)
        return cls(
            surface,
            rewards,
            examples,
            delays,
            np.asarray(IN_PLAY, dtype=np.int64)[stretches],
            _arrivals(delays),
        )

    @property
    def rollouts(self) -> int:
        """T."""
        return len(self.rewards)

    def best(self) -> Vector:
        """The highest mean among the candidates in play at each rollout, (T,)."""
        return np.asarray(np.maximum.accumulate(self.surface.means)[self.in_play - 1])


def arms(
    rollouts: NDArray[np.int64], rewards: NDArray[np.int64], sums: NDArray[np.int64]
) -> list[Arm]:
    """The optimizer's view of the first K candidates; all three are (K,), rewards are 0 or 1."""
    return [
        Arm.model_construct(
            candidate_id=IDS[k],
            levers=LEVERS[k],
            statistics=Statistics.model_construct(
                rollouts=served, rewards=count, reward_sum=total, reward_square_sum=total
            ),
        )
        for k, (served, count, total) in enumerate(
            zip(rollouts.tolist(), rewards.tolist(), sums.astype(float).tolist(), strict=True)
        )
    ]


def _mean_chance(scores: Vector) -> Vector:
    """The chance of reward over all examples, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    spread = np.sqrt(DIFFICULTY_SD**2 + 2 * SUITS_SD**2)
    chances = _logistic(scores[:, None] + spread * nodes)
    # Not a matrix product: equal scores have equal means to the last bit here.
    return np.asarray((chances * weights).sum(axis=1) / weights.sum())


def _chances(scores: Vector, examples: int, rng: np.random.Generator) -> Matrix:
    """The chance of each candidate on each of so many new examples, (examples, 42)."""
    instruction, demonstrations = np.array(LEVERS).T - 1
    difficulty = rng.normal(0.0, DIFFICULTY_SD, (examples, 1))
    suits_instruction = rng.normal(0.0, SUITS_SD, (examples, INSTRUCTIONS))
    suits_set = rng.normal(0.0, SUITS_SD, (examples, DEMONSTRATION_SETS))
    suits = suits_instruction[:, instruction] + suits_set[:, demonstrations]
    return _logistic(scores + difficulty + suits)


def _logistic(logits: Matrix) -> Matrix:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def _arrivals(delays: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    due: list[list[int]] = [[] for _ in range(len(delays) + 1)]
    for rollout, at in enumerate(np.minimum(np.arange(len(delays)) + delays, len(delays)).tolist()):
        due[at].append(rollout)
    return tuple(map(tuple, due))
