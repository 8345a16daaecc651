"""The factorial pool: which lever versions are combined, and which can no longer win."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from prefect_mipro.models.candidates import Candidate
from prefect_mipro.optimizer.posterior import Posterior

RETIRE_BELOW = 0.01
RETIRE_AFTER_REWARDS = 30
FAIR_REWARDS = 100
DRAWS = 512


def combinations(
    candidates: Sequence[Candidate],
    *,
    instructions: Iterable[int],
    demonstrations: Iterable[int],
    room: int,
) -> list[tuple[int, int]]:
    """At most `room` pairs (instruction, demonstrations) of new versions with active ones.

    Every new instruction meets every demonstration set in play and the other way round, and new
    versions meet each other. Where room is short, each new version gets one pair before any gets
    two, and pairs with the partners that have earned most rewards come first, because selection has
    kept returning to them.
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
    return _covering(fresh, new)[: max(0, room)]


def parent(belief: Posterior, candidates: Sequence[Candidate], *, rng: np.random.Generator) -> int:
    """The instruction version to build on: that of the best active candidate in one draw.

    A draw, not the best mean: several good instructions get children, each as often as it is
    likely to be the best (that the best alone breeds costs GEPA 6 points, arXiv 2507.19457,
    table 2).
    """
    active = [c for c in candidates if c.active]
    drawn = belief.draws(rng, 1)[[belief.index(c.candidate_id) for c in active], 0]
    return active[int(drawn.argmax())].instruction_version


def retirable(
    belief: Posterior,
    candidates: Sequence[Candidate],
    *,
    rewards: Mapping[str, int],
    keep: Iterable[str],
    by_hand: Collection[str],
    rng: np.random.Generator,
) -> list[str]:
    """The candidates of lever versions that are the best's own with less than 1 % probability.

    A version is judged once its candidates have 30 rewards together; `rewards` counts those that
    the belief rests on. Candidates in `keep` (the champion, the baseline, both sides of a duel)
    stay, and so do those made `by_hand` before they have 100 rewards, and the versions all of these
    are made of.
    """
    active = [c for c in candidates if c.active]
    kept = set(keep) | {i for i in by_hand if rewards.get(i, 0) < FAIR_REWARDS}
    protected = [{c.levers[lever] for c in active if c.candidate_id in kept} for lever in (0, 1)]
    indices = [belief.index(c.candidate_id) for c in active]
    winners = belief.draws(rng, DRAWS)[indices].argmax(axis=0)
    share = np.bincount(winners, minlength=len(active)) / len(winners)
    losers: set[str] = set()
    for lever in (0, 1):
        for version in {c.levers[lever] for c in active} - protected[lever]:
            members = [i for i, c in enumerate(active) if c.levers[lever] == version]
            seen = sum(rewards.get(active[i].candidate_id, 0) for i in members)
            if seen >= RETIRE_AFTER_REWARDS and share[members].sum() < RETIRE_BELOW:
                losers.update(active[i].candidate_id for i in members)
    return sorted(losers)


def _covering(
    pairs: Sequence[tuple[int, int]], new: tuple[Sequence[int], Sequence[int]]
) -> list[tuple[int, int]]:
    """The same pairs; first those that bring a new version that no pair before them brought."""
    missing = {(lever, version) for lever in (0, 1) for version in new[lever]}
    first: list[tuple[int, int]] = []
    for pair in pairs:
        if missing & set(enumerate(pair)):
            missing -= set(enumerate(pair))
            first.append(pair)
    return [*first, *(pair for pair in pairs if pair not in first)]


def _by_rewards(candidates: Sequence[Candidate], lever: int) -> list[int]:
    """The versions of a lever in play, those with most rewards first."""
    rewards: dict[int, int] = {}
    for candidate in candidates:
        version = candidate.levers[lever]
        rewards[version] = rewards.get(version, 0) + candidate.statistics.rewards
    return sorted(rewards, key=lambda version: (-rewards[version], version))
