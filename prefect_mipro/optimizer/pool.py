"""The factorial pool: which lever versions are combined, and which can no longer win."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from prefect_mipro.models.candidates import Candidate
from prefect_mipro.optimizer.posterior import Posterior

RETIRE_BELOW = 0.01
RETIRE_AFTER_REWARDS = 30


def combinations(
    candidates: Sequence[Candidate],
    *,
    instructions: Iterable[int],
    demonstrations: Iterable[int],
    room: int,
) -> list[tuple[int, int]]:
    """At most `room` pairs (instruction, demonstrations) of new versions with active ones.

    Every new instruction meets every demonstration set in play and the other way round, and new
    versions meet each other. Where room is short, pairs with the partners that have earned most
    rewards come first, because selection has kept returning to them.
    """
    active = [c for c in candidates if c.active]
    new = (list(instructions), list(demonstrations))
    old = [_by_rewards(active, lever) for lever in (0, 1)]
    pairs = [
        *product(new[0], old[1]),
        *((instruction, version) for version in new[1] for instruction in old[0]),
        *product(*new),
    ]
    rank = {0: {v: i for i, v in enumerate(old[0])}, 1: {v: i for i, v in enumerate(old[1])}}
    known = {c.levers for c in candidates}
    fresh = [pair for pair in dict.fromkeys(pairs) if pair not in known]
    fresh.sort(key=lambda pair: rank[0].get(pair[0], 0) + rank[1].get(pair[1], 0))
    return fresh[: max(0, room)]


def retirable(
    belief: Posterior,
    candidates: Sequence[Candidate],
    *,
    keep: Iterable[str],
    rng: np.random.Generator,
) -> list[str]:
    """The candidates of lever versions that are the best's own with less than 1 % probability.

    A version is judged once its candidates have 30 rewards together. Candidates in `keep` (the
    champion, the baseline, both sides of a duel) stay, and so do the versions they are made of.
    """
    active = [c for c in candidates if c.active]
    kept = set(keep)
    protected = [{c.levers[lever] for c in active if c.candidate_id in kept} for lever in (0, 1)]
    indices = [belief.index(c.candidate_id) for c in active]
    winners = belief.draws(rng, 512)[indices].argmax(axis=0)
    share = np.bincount(winners, minlength=len(active)) / len(winners)
    losers: set[str] = set()
    for lever in (0, 1):
        for version in {c.levers[lever] for c in active} - protected[lever]:
            members = [i for i, c in enumerate(active) if c.levers[lever] == version]
            rewards = sum(active[i].statistics.rewards for i in members)
            if rewards >= RETIRE_AFTER_REWARDS and share[members].sum() < RETIRE_BELOW:
                losers.update(active[i].candidate_id for i in members)
    return sorted(losers)


def _by_rewards(candidates: Sequence[Candidate], lever: int) -> list[int]:
    """The versions of a lever in play, those with most rewards first."""
    rewards: dict[int, int] = {}
    for candidate in candidates:
        version = candidate.levers[lever]
        rewards[version] = rewards.get(version, 0) + candidate.statistics.rewards
    return sorted(rewards, key=lambda version: (-rewards[version], version))
