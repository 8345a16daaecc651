"""The whole loop on a made-up surface: belief, choice, duel and verdict, with late rewards."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from prefect_mipro.config import PromotionSettings, SelectionSettings, Strategy
from prefect_mipro.models.candidates import Arm, Duel, DuelObservation, DuelState
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import Posterior, posterior
from prefect_mipro.optimizer.promotion import challenger, verdict
from prefect_mipro.optimizer.selection import Choice, Plan, choose, plan
from tests.optimizer.arms import arm, duel

ROLLOUTS = 300
DELAY = 8
SEEDS = range(6)
PROMOTION = PromotionSettings()

# Chance of success by (instruction, demonstrations): demonstrations carry most of the lift.
INSTRUCTIONS = np.array([0.0, 0.06, -0.05, 0.02])
DEMONSTRATIONS = np.array([0.25, 0.45, 0.30, 0.65])
SURFACE = INSTRUCTIONS[:, None] + DEMONSTRATIONS
IDS = [f"{i + 1}.{d + 1}" for i, d in np.ndindex(SURFACE.shape)]


@dataclass
class Loop:
    """A session in miniature, without a server."""

    selection: SelectionSettings
    rng: np.random.Generator
    counts: NDArray[np.int_] = field(default_factory=lambda: np.zeros((4, 4), dtype=int))
    wins: NDArray[np.int_] = field(default_factory=lambda: np.zeros((4, 4), dtype=int))
    waiting: deque[tuple[Choice, bool]] = field(default_factory=deque)
    champion_id: str = "1.1"
    newest: Duel | None = None
    seen: list[DuelObservation] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)

    def run(self) -> Loop:
        for _ in range(0, ROLLOUTS, 4):
            shares = self.planned()
            for _ in range(4):
                self.serve(shares)
                if len(self.waiting) > DELAY:
                    self.reward(*self.waiting.popleft())
        return self

    def planned(self) -> Plan:
        evidence = Evidence.of(self.arms())
        belief = posterior(evidence)
        self.promote(belief)
        return plan(
            evidence,
            belief=belief,
            active=IDS,
            champion_id=self.champion_id,
            settings=self.selection,
            rng=self.rng,
        )

    def serve(self, shares: Plan) -> None:
        choice = choose(
            shares,
            duel=self.newest,
            expected_deviation=0.0,
            settings=self.selection,
            promotion=PROMOTION,
            rng=self.rng,
        )
        chance = SURFACE[position(choice.candidate_id)]
        self.chances.append(chance)
        self.waiting.append((choice, bool(self.rng.random() < chance)))
        if self.newest and choice.duel_number:
            self.newest = self.newest.model_copy(update={"rollouts": self.newest.rollouts + 1})

    def reward(self, choice: Choice, success: bool) -> None:
        self.counts[position(choice.candidate_id)] += 1
        self.wins[position(choice.candidate_id)] += success
        if not self.newest or choice.duel_number != self.newest.number:
            return
        assert choice.predicted_reward is not None
        self.seen.append(
            DuelObservation(
                is_challenger=choice.candidate_id == self.newest.challenger_id,
                reward=float(success),
                predicted_reward=choice.predicted_reward,
            )
        )
        sums = {
            "rewards": self.newest.rewards + 1,
            "reward_sum": self.newest.reward_sum + success,
        }
        self.newest = self.newest.model_copy(update=sums)

    def promote(self, belief: Posterior) -> None:
        if self.newest and self.newest.state is DuelState.RUNNING:
            state = verdict(
                self.newest,
                self.seen,
                belief,
                active=IDS,
                awaited=self.newest.rollouts - len(self.seen),
                settings=PROMOTION,
            )
            self.newest = self.newest.model_copy(update={"state": state})
            if state is DuelState.WON:
                self.champion_id = self.newest.challenger_id
        found = challenger(
            belief,
            active=IDS,
            champion_id=self.champion_id,
            duel=self.newest,
            rollouts_now=len(self.chances),
            settings=PROMOTION,
        )
        if found:
            self.seen = []
            self.newest = duel(
                self.champion_id,
                found[0],
                number=self.newest.number + 1 if self.newest else 1,
                predicted_lift=found[1],
                rollouts_before=len(self.chances),
            )

    def arms(self) -> list[Arm]:
        flying = Counter(choice.candidate_id for choice, _ in self.waiting)
        return [
            arm(
                i + 1,
                d + 1,
                rewards=int(n),
                mean=int(self.wins[i, d]) / max(1, int(n)),
                in_flight=flying[f"{i + 1}.{d + 1}"],
            )
            for (i, d), n in np.ndenumerate(self.counts)
        ]


def position(candidate_id: str) -> tuple[int, int]:
    instruction, demonstrations = map(int, candidate_id.split("."))
    return instruction - 1, demonstrations - 1


@cache
def loops(strategy: Strategy) -> list[Loop]:
    return [
        Loop(SelectionSettings(strategy=strategy), np.random.default_rng(seed)).run()
        for seed in SEEDS
    ]


def mean_chance(strategy: Strategy) -> float:
    return float(np.mean([loop.chances for loop in loops(strategy)]))


def test_exploring_earns_more_than_chance_and_more_than_the_baseline() -> None:
    uniform = mean_chance(Strategy.UNIFORM)
    assert mean_chance(Strategy.MIPRO) > uniform + 0.08
    assert mean_chance(Strategy.MIPRO) > SURFACE[0, 0] + 0.2


def test_a_much_better_champion_is_found_every_time() -> None:
    lifts = [SURFACE[position(loop.champion_id)] - SURFACE[0, 0] for loop in loops(Strategy.MIPRO)]
    assert min(lifts) >= 0.2
    assert np.mean(lifts) >= 0.35


def test_the_belief_ends_near_the_best_candidate() -> None:
    for loop in loops(Strategy.MIPRO):
        belief = posterior(Evidence.of(loop.arms()))
        pick = position(belief.arms[int(belief.mean.argmax())].candidate_id)
        assert SURFACE[pick] >= SURFACE.max() - 0.15
