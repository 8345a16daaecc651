"""A session of the optimizer in miniature: belief, choice, duels and verdicts on simulated traffic.

The server believes anew every four rewards and looks at the running duel after each. Here both
happen every `rewards_per_look` rewards, four unless told otherwise: a verdict counts the best
moment of the evidence so far and misses none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache

import numpy as np

from benchmarks.simulation import CANDIDATES, IDS, LEVERS, Traffic
from prefect_mipro.config import PromotionSettings, SelectionSettings
from prefect_mipro.models.candidates import Arm, Duel, DuelObservation, DuelState, Statistics
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import Posterior, posterior
from prefect_mipro.optimizer.promotion import challenger, verdict
from prefect_mipro.optimizer.selection import Choice, Plan, choose, plan

REWARDS_PER_LOOK = 4
# Rollouts of one stretch of the traffic, as the server's after 2,000.
STRETCH = 32
BASELINE_FLOOR = 0.1

POSITIONS = {candidate_id: k for k, candidate_id in enumerate(IDS)}
START = datetime(2025, 1, 1, tzinfo=UTC)
SELECTION = SelectionSettings()
PROMOTION = PromotionSettings()
MODEL_PROBABILITY = 0.95


class Way(StrEnum):
    """How a session is played: with duels, without, or without and a tenth for the baseline."""

    DUELS = "duels"
    NO_DUELS = "no duels"
    FLOOR = "floor"


@dataclass(frozen=True)
class Promotion:
    """A candidate becomes champion: when, and how much better it truly is than the one before."""

    rollout: int
    lift: float

    @property
    def false(self) -> bool:
        return self.lift <= 0.0


@dataclass(eq=False)
class Session:
    """A session in miniature. Candidates are positions; rollouts are too."""

    traffic: Traffic
    way: Way
    rng: np.random.Generator
    rewards_per_look: int = REWARDS_PER_LOOK
    champion: int = 0
    duel: Duel | None = None
    promotions: list[Promotion] = field(default_factory=list)
    ended: Counter[DuelState] = field(default_factory=Counter)
    arrived: list[int] = field(default_factory=list)
    convincing: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.arms = [_arm(k, 0) for k in range(CANDIDATES)]
        self.in_flight = np.zeros(CANDIDATES)
        self.counts = np.zeros((CANDIDATES, math.ceil(self.traffic.rollouts / STRETCH)))
        self.sums = np.zeros_like(self.counts)
        self.chosen = np.zeros(self.traffic.rollouts, dtype=np.int64)
        self.settled = np.zeros(self.traffic.rollouts + 1, dtype=bool)
        self.watermark = 0
        self.pinned: dict[int, Choice] = {}
        self.seen: list[DuelObservation] = []

    def play(self) -> Session:
        looked, in_play, shares = 0, 0, None
        for rollout in range(self.traffic.rollouts):
            for late in self.traffic.arrivals[rollout]:
                self._reward(late)
            entering = in_play != self.traffic.in_play[rollout]
            if shares is None or entering or len(self.arrived) - looked >= self.rewards_per_look:
                looked, in_play = len(self.arrived), int(self.traffic.in_play[rollout])
                shares = self._look(rollout, in_play)
            self._serve(rollout, shares)
        return self

    @property
    def regret(self) -> float:
        """By how much less than the best candidate in play earns, all rollouts together."""
        return float((self.traffic.best() - self.traffic.surface.means[self.chosen]).sum())

    def _serve(self, rollout: int, shares: Plan) -> None:
        choice = choose(
            shares,
            duel=self.duel,
            expected_deviation=0.0,
            settings=SELECTION,
            promotion=PROMOTION,
            rng=self.rng,
        )
        self.chosen[rollout] = POSITIONS[choice.candidate_id]
        self.in_flight[self.chosen[rollout]] += 1
        if self.duel and choice.duel_number == self.duel.number:
            self.pinned[rollout] = choice
            self.duel = self.duel.model_copy(update={"rollouts": self.duel.rollouts + 1})

    def _reward(self, rollout: int) -> None:
        cell = int(self.chosen[rollout]), rollout // STRETCH
        reward = int(self.traffic.rewards[rollout, cell[0]])
        self.counts[cell] += 1
        self.sums[cell] += reward
        self.in_flight[cell[0]] -= 1
        self.arms[cell[0]] = _arm(cell[0], self.arms[cell[0]].statistics.rewards + 1)
        self.settled[rollout] = True
        self.arrived.append(rollout)
        if self.duel and rollout in self.pinned:
            update = {
                "rewards": self.duel.rewards + 1,
                "reward_sum": self.duel.reward_sum + reward,
            }
            self.duel = self.duel.model_copy(update=update)

    def _look(self, rollout: int, in_play: int) -> Plan:
        stretches = slice(rollout // STRETCH + 1)
        evidence = Evidence(
            arms=tuple(self.arms[:in_play]),
            counts=self.counts[:in_play, stretches],
            sums=self.sums[:in_play, stretches],
            square_sum=float(self.sums.sum()),
            pending=self.in_flight[:in_play],
        )
        belief = posterior(evidence)
        active = IDS[:in_play]
        if self.way is Way.DUELS:
            self._promote(rollout, belief, active)
        shares = plan(
            evidence,
            belief=belief,
            active=active,
            champion_id=IDS[self.champion],
            settings=SELECTION,
            rng=self.rng,
        )
        if self.way is not Way.FLOOR:
            return shares
        self._note_convincing(belief)
        propensities = (1.0 - BASELINE_FLOOR) * shares.propensities
        propensities[0] += BASELINE_FLOOR
        return Plan(shares.ids, propensities)

    def _promote(self, rollout: int, belief: Posterior, active: Sequence[str]) -> None:
        """What `server.services.promotion` does after a reward."""
        if self.duel and self.duel.state is DuelState.RUNNING:
            self._observe(self.duel)
            state = verdict(
                self.duel,
                self.seen,
                belief,
                active=active,
                awaited=self.duel.rollouts - len(self.seen),
                settings=PROMOTION,
            )
            if state is not DuelState.RUNNING:
                self._end(rollout, self.duel.model_copy(update={"state": state}))
            return
        found = challenger(
            belief,
            active=active,
            champion_id=IDS[self.champion],
            duel=self.duel,
            rollouts_now=rollout,
            settings=PROMOTION,
        )
        if found:
            self.pinned, self.seen = {}, []
            self.duel = Duel(
                session_id="session",
                number=self.duel.number + 1 if self.duel else 1,
                champion_id=IDS[self.champion],
                challenger_id=found[0],
                predicted_lift=found[1],
                rollouts_before=rollout,
                started_at=START,
            )

    def _observe(self, duel: Duel) -> None:
        """Add the duel's rollouts up to the watermark, in the order of the pins."""
        while self.settled[self.watermark]:
            choice = self.pinned.get(self.watermark)
            if choice and choice.predicted_reward is not None:
                candidate = self.chosen[self.watermark]
                self.seen.append(
                    DuelObservation.model_construct(
                        is_challenger=choice.candidate_id == duel.challenger_id,
                        reward=float(self.traffic.rewards[self.watermark, candidate]),
                        predicted_reward=choice.predicted_reward,
                    )
                )
            self.watermark += 1

    def _end(self, rollout: int, duel: Duel) -> None:
        self.duel, self.pinned = duel, {}
        self.ended[duel.state] += 1
        if duel.state is DuelState.WON:
            means, won = self.traffic.surface.means, POSITIONS[duel.challenger_id]
            lift = float(means[won] - means[self.champion])
            self.promotions.append(Promotion(rollout, lift))
            self.champion = won

    def _note_convincing(self, belief: Posterior) -> None:
        """Remember whom the model alone would promote first, and after which reward."""
        if self.convincing or len(self.arrived) < PROMOTION.min_rewards:
            return
        leader = int(belief.mean[1:].argmax()) + 1
        if belief.probability_better(IDS[leader], than=IDS[0]) > MODEL_PROBABILITY:
            self.convincing = len(self.arrived) - 1, leader


@cache
def _arm(candidate: int, rewards: int) -> Arm:
    """What a trigger wants to know of a candidate; what it earned stands in the evidence."""
    return Arm.model_construct(
        candidate_id=IDS[candidate],
        levers=LEVERS[candidate],
        statistics=Statistics.model_construct(rewards=rewards),
    )
