"""Beliefs: the posterior of each session's candidates, and how their traffic is shared out."""

from __future__ import annotations

import asyncio
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prefect_mipro.config import MiproConfig
from prefect_mipro.models.candidates import Arm, Candidate, RewardBlock
from prefect_mipro.models.sessions import Session
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.failures import failure_evidence, on_probation
from prefect_mipro.optimizer.posterior import DEFAULT_SCALES, Posterior, posterior
from prefect_mipro.optimizer.selection import Plan, plan
from prefect_mipro.server.services.session_cache import LiveSession, PromptCache, Recent
from prefect_mipro.server.store.records import Failures, LearningFacts
from prefect_mipro.server.store.store import Store

# A belief serves until so many rewards, or so many rollouts without any, have come since. It moves
# less than the noise of a draw in between, and a choice then costs no more than the draw. Where
# much is known already, that is this share of the rewards, or of the rollouts that await theirs.
REFIT_REWARDS = 4
REFIT_ROLLOUTS = 16
REFIT_REWARDS_SHARE = 1 / 64
REFIT_ROLLOUTS_SHARE = 1 / 2
# Each failure counts as long as there are few.
REFIT_FAILURES_SHARE = 1 / 16

# Up to so many candidates a fit takes less time than handing it to a thread and back.
FITTED_AT_ONCE = 12

# The approximate memory that all beliefs may take.
LARGEST_BELIEFS_BYTES = 64 * 2**20
# Measured: the memory of one, and of what it holds.
BELIEF_BYTES = 10_000
BYTES_OF_A_CANDIDATE = 2_000
BYTES_OF_A_BLOCK = 500


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A session's candidates, what they earned in its present epoch, and what follows from it.

    `session` is as it was when the candidates were read. The belief is over all of `candidates`,
    the retired ones included: they teach about the levers they share. `failure_evidence` is that
    against each candidate in play but the baseline, and those on `probation` get few calls
    (`optimizer.failures`).
    """

    session: Session
    candidates: tuple[Candidate, ...]
    blocks: tuple[RewardBlock, ...]
    belief: Posterior
    plan: Plan
    failures: Failures
    failure_evidence: Mapping[str, float]
    probation: frozenset[str]

    @cached_property
    def active(self) -> tuple[Candidate, ...]:
        """The candidates in play."""
        return tuple(candidate for candidate in self.candidates if candidate.active)

    @cached_property
    def active_ids(self) -> tuple[str, ...]:
        """The ids of the candidates in play, by number."""
        return tuple(candidate.candidate_id for candidate in self.active)

    @cached_property
    def most_rewards(self) -> float:
        """The number of the session's rewards up to which the snapshot may be used."""
        present = sum(block.rewards for block in self.blocks if block.epoch == self.session.epoch)
        return self.session.rewards + max(REFIT_REWARDS, REFIT_REWARDS_SHARE * present)

    @cached_property
    def most_rollouts(self) -> float:
        """The number of the session's rollouts up to which the snapshot may be used."""
        if len(self.active) == 1:  # nothing to share out
            return math.inf
        awaited = sum(candidate.statistics.in_flight for candidate in self.candidates)
        return self.session.rollouts + max(REFIT_ROLLOUTS, REFIT_ROLLOUTS_SHARE * awaited)

    @cached_property
    def most_failures(self) -> float:
        """The number of failed rollouts from which on the snapshot is out of date."""
        return self.failures.total + max(1.0, REFIT_FAILURES_SHARE * self.failures.total)

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the snapshot without its session."""
        return (
            BELIEF_BYTES
            + BYTES_OF_A_CANDIDATE * len(self.candidates)
            + BYTES_OF_A_BLOCK * len(self.blocks)
            + self.belief.covariance.nbytes
        )

    def suits(self, session: Session | LiveSession) -> bool:
        """Whether the snapshot is recent enough for the session."""
        then = self.session
        if isinstance(session, LiveSession):
            if session.active_candidates != len(self.active):
                return False
            if not session.withdrawn_ids.isdisjoint(self.active_ids):
                return False
            if session.failures >= self.most_failures:
                return False
        return (
            session.rewards < self.most_rewards
            and session.rollouts < self.most_rollouts
            and session.champion_id == then.champion_id
            and session.epoch == then.epoch
            and session.proposal_number == then.proposal_number
        )


class Beliefs:
    """The beliefs of all sessions. Derived from stored facts, so that losing them loses nothing."""

    def __init__(self, store: Store, prompts: PromptCache) -> None:
        self._store = store
        self._prompts = prompts
        self._held: Recent[Snapshot] = Recent(LARGEST_BELIEFS_BYTES)
        self._fitting: dict[str, asyncio.Task[Snapshot]] = {}

    async def recent(self, session: Session | LiveSession) -> Snapshot:
        """The latest snapshot, unless too much has happened since. `session` is as of now."""
        held = self._held.get(session.session_id)
        if held is not None and held.suits(session):
            return held
        if isinstance(session, LiveSession):
            session = session.as_session()
        under_way = self._fitting.get(session.session_id)
        if under_way is None:
            under_way = asyncio.create_task(self.fresh(session))
            self._fitting[session.session_id] = under_way
            under_way.add_done_callback(lambda _: self._fitting.pop(session.session_id, None))
        return await asyncio.shield(under_way)

    async def fresh(self, session: Session) -> Snapshot:
        """A snapshot of the facts as they are now."""
        facts = await self._store.learning_facts(session.session_id)
        config = self._prompts.config(session)
        if len(facts.candidates) <= FITTED_AT_ONCE:
            snapshot = _fit(session, config, facts)
        else:
            snapshot = await asyncio.to_thread(_fit, session, config, facts)
        size_bytes = snapshot.size_bytes + self._prompts.size_bytes(session)
        self._held.put(session.session_id, snapshot, size_bytes=size_bytes)
        return snapshot

    def forget(self, session_id: str) -> None:
        """Make a new snapshot at the next choice: the candidates have changed."""
        self._held.drop(session_id)


def _fit(session: Session, config: MiproConfig, facts: LearningFacts) -> Snapshot:
    candidates, blocks, failures = facts.candidates, facts.blocks, facts.failures
    present = [block for block in blocks if block.epoch == session.epoch]
    arms = [candidate.arm for candidate in candidates]
    if session.epoch > 1:
        arms = [_of_epoch(arm, present) for arm in arms]
    evidence = Evidence.of(arms, present, impute=config.mipro.imputed_reward)
    belief = posterior(evidence, scales=replace(DEFAULT_SCALES, caution=config.caution))
    # A champion may have given way, and been retired, since the session was read.
    active = [
        candidate
        for candidate in candidates
        if candidate.active or candidate.candidate_id == session.champion_id
    ]
    active_ids = [candidate.candidate_id for candidate in active]
    against = failure_evidence(
        failures.newest,
        active_ids,
        baseline_id=session.baseline_id,
        champion_id=session.champion_id,
    )
    probation = on_probation(
        failures.newest,
        against,
        unanswered={c.candidate_id for c in active if not c.statistics.answered_calls},
        baseline_id=session.baseline_id,
        champion_id=session.champion_id,
    )
    shares = plan(
        evidence,
        belief=belief,
        active=active_ids,
        champion_id=session.champion_id,
        settings=config.mipro.selection,
        rng=generator(config, session, session.rewards, session.rollouts),
        probation=probation,
    )
    return Snapshot(session, candidates, blocks, belief, shares, failures, against, probation)


def _of_epoch(arm: Arm, blocks: Sequence[RewardBlock]) -> Arm:
    """The arm with the rewards of these blocks alone; what is in flight or missing stays."""
    own = [block for block in blocks if block.candidate_id == arm.candidate_id]
    rewards = sum(block.rewards for block in own)
    counted = arm.statistics
    earned = {
        "rewards": rewards,
        "reward_sum": sum(block.reward_sum for block in own),
        "reward_square_sum": sum(block.reward_square_sum for block in own),
        "rollouts": counted.rollouts - counted.rewards + rewards,
    }
    return arm.model_copy(update={"statistics": counted.model_copy(update=earned)})


def generator(config: MiproConfig, session: Session, *of: int) -> np.random.Generator:
    """A random generator seeded by the session's seed and name, and by its purpose."""
    name = zlib.crc32(session.session_id.encode())
    return np.random.default_rng([config.mipro.seed & 0xFFFFFFFF, name, *of])


class Chance:
    """Random numbers that depend on the session's seed and name and on the rollout alone.

    They are cut from a digest: making a numpy generator takes twenty times as long.
    """

    def __init__(self, config: MiproConfig, session_id: str, rollout_id: str) -> None:
        name = f"{config.mipro.seed} {session_id} {rollout_id}"
        self._digest = hashlib.blake2b(name.encode()).digest()
        self._used = 0

    def random(self) -> float:
        """The next number from 0 up to, but not including, 1; there are eight."""
        start = self._used
        self._used += 8
        return (int.from_bytes(self._digest[start : self._used]) >> 11) * 2.0**-53
