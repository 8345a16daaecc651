"""How much easier than others an example is expected to be, from what it earned before."""

from __future__ import annotations

# A reward's variance around its example's mean over the variance of the examples' means: 3 on
# the simulated surfaces (`benchmarks/simulation.py`), less where answers hardly vary.
PSEUDO_REWARDS = 3.0


def expected_deviation(rewards: int, deviation_sum: float) -> float:
    """How much more than others the example's next rollout is expected to earn.

    `deviation_sum` adds up by how much each of its `rewards` exceeded the mean of its candidate.
    The mean deviation, shrunk towards 0 as the best linear predictor of a random effect is
    (Robinson, "That BLUP is a good thing", Statistical Science 1991).
    """
    return deviation_sum / (rewards + PSEUDO_REWARDS)
