"""Statuses as the backend answers them, small and large, for what renders them."""

from __future__ import annotations

from datetime import UTC, datetime
from math import exp, sqrt
from random import Random
from typing import Any

from prefect_mipro.models.levers import MiproLeverSummary
from prefect_mipro.models.sensors import SensorFrameSummary
from prefect_mipro.models.sessions import (
    CandidateReport,
    ContextApply,
    DuelReport,
    ProposerReport,
    RewardFlow,
    SessionState,
    SessionStatus,
    Spending,
)

CREATED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def candidate(number: int, **changes: Any) -> CandidateReport:
    """Candidate `number`; the baseline is number 1, everybody's parent is the one before."""
    values: dict[str, Any] = {
        "candidate_id": candidate_id(number),
        "number": number,
        "parent_id": candidate_id(number - 1) if number > 1 else None,
        "label": None,
        "status": "evaluated",
        "instruction_version": number,
        "demonstrations_version": 1,
        "rollout_count": 20,
        "reward_count": 20,
        "avg_reward": 0.02 * number,
        "mean": 0.02 * number,
        "interval": (0.01 * number, 0.03 * number),
        "probability_best": 0.1,
        "probability_better": 0.2,
        "failed_calls": 0,
        "unapplied_calls": 0,
        "prompt_tokens": 900,
        "completion_tokens": 60,
        "cost_usd": None,
        "latency_seconds": 0.1,
        "instruction": f"Classify the request, wording {number}.",
        "demonstrations": [],
        "origin": "baseline" if number == 1 else "rewrite",
        "created_at": CREATED,
    }
    return CandidateReport(**(values | changes))


def candidate_id(number: int) -> str:
    """`baseline_…` for number 1, `cand_…` for the others."""
    return f"{'baseline' if number == 1 else 'cand'}_{number:012x}"


def status(*candidates: CandidateReport, champion: int = 1, **changes: Any) -> SessionStatus:
    """A running session with these candidates."""
    champion_id = candidate_id(champion)
    url = "http://127.0.0.1:8000/api/mipro/v1/support-bot.0123456789abcdef0123456789abcdef"
    values: dict[str, Any] = {
        "online_url": url,
        "proxy_url": url,
        "chat_completions_url": f"{url}/chat/completions",
        "session_id": "support-bot",
        "system_id": "support-bot",
        "job_id": "pl_0123456789abcdef",
        "kind": "mipro_online",
        "status": SessionState.RUNNING,
        "state": SessionState.RUNNING,
        "correlation_id": None,
        "agent_id": None,
        "version": 41,
        "rollout_count": 60,
        "reward_count": 60,
        "proposal_seq": 2,
        "best_reward": 0.6,
        "best_score": 0.6,
        "best_candidate_id": champion_id,
        "best_candidate": {},
        "champion_candidate_id": champion_id,
        "baseline_candidate_id": candidate_id(1),
        "lever_summary": MiproLeverSummary(),
        "lever_versions": {"mipro.prompt.support-bot": champion},
        "best_lever_version": champion,
        "prompt_lever_id": "mipro.prompt.support-bot",
        "candidate_lever_versions": {},
        "sensor_frames": [
            SensorFrameSummary(
                frame_id="frame_1",
                created_at=CREATED,
                sensor_count=2,
                sensor_kinds=("reward", "timing"),
                trace_ids=("trace_1", "rollout_1"),
                lever_versions={"mipro.prompt.support-bot": 2},
            )
        ],
        "candidates": {report.candidate_id: report for report in candidates},
        "attempted_candidates": [],
        "optimized_candidates": [],
        "context_apply": ContextApply(calls=60, unapplied_calls=0),
        "proposer": ProposerReport(rounds=2, failures=0, error=None, waiting_for="12 more rewards"),
        "reward_flow": RewardFlow(rewarded=60, in_flight=0, missing=0, watermark=60),
        "reward_curve": [(20, 0.3), (40, 0.5), (60, 0.7)],
        "exploration_value": 0.02,
        "spending": Spending(
            prompt_tokens=600,
            completion_tokens=120,
            proposer_prompt_tokens=0,
            proposer_completion_tokens=0,
            cost_usd=None,
        ),
        "epoch": 1,
        "promotions": 0,
        "created_at": CREATED,
        "updated_at": CREATED,
    }
    return SessionStatus(**(values | changes))


def duel(challenger: int) -> DuelReport:
    """A running duel of candidate 1 against `challenger`."""
    return DuelReport(
        number=1,
        champion_id=candidate_id(1),
        challenger_id=candidate_id(challenger),
        state="running",
        rollouts=30,
        rewards=28,
        observations=28,
        e_value=3.25,
        e_value_against=0.2,
        threshold=20.0,
        predicted_lift=0.2,
        detectable_lift=0.45,
    )


def large_status() -> SessionStatus:
    """Forty candidates with prompts of a thousand words, after 2,225 rollouts."""
    chance = Random(2)
    reports = [_large_candidate(number, chance) for number in range(1, 41)]
    curve = [
        (25 * block, 0.3 + 0.5 * (1 - exp(-block / 20)) + chance.uniform(-0.08, 0.08))
        for block in range(1, 90)
    ]
    return status(
        *reports,
        champion=33,
        session_id="Support_Bot:long-prompts",
        rollout_count=2225,
        reward_count=2210,
        reward_curve=curve,
        reward_flow=RewardFlow(rewarded=2210, in_flight=9, missing=6, watermark=2225),
        duel=duel(36).model_copy(update={"number": 4, "champion_id": candidate_id(33)}),
        context_apply=ContextApply(
            calls=2225, unapplied_calls=3, last_reason="the system message is another one"
        ),
        warnings=["prompt_learning.mipro.meta_model has no effect here"],
    )


def _large_candidate(number: int, chance: Random) -> CandidateReport:
    mean = 0.2 if number == 1 else 0.88 if number == 33 else min(0.85, 0.2 + 0.7 * chance.random())
    rewards = 180 if number == 33 else chance.randrange(4, 120)
    half = 1.96 * sqrt(mean * (1 - mean) / rewards)
    return candidate(
        number,
        parent_id=candidate_id(chance.randrange(1, number)) if number > 1 else None,
        rollout_count=rewards,
        reward_count=rewards,
        avg_reward=mean,
        mean=mean,
        interval=(max(0.0, mean - half), min(1.0, mean + half)),
        probability_best=0.6 if number == 33 else chance.random() * 0.05,
        instruction=long_instruction(number),
        demonstrations=[
            {"input": f"Ticket {turn}: {SENTENCE * 8}", "output": f"Answer {turn}. {SENTENCE * 3}"}
            for turn in range(number % 9)
        ],
        origin="proposer: more concise" if number % 2 else "demonstrations: expected answers",
        prompt_tokens=rewards * 9_000,
        completion_tokens=rewards * 300,
        cost_usd=rewards * 0.0021 * (1 + number % 9),
        latency_seconds=1 + chance.random(),
        first_byte_seconds=0.4 + chance.random() / 4,
        status="retired" if number % 3 == 2 else "evaluated",
    )


SENTENCE = "Answer in the customer's language, and keep the order of the steps. "


def long_instruction(number: int) -> str:
    """A thousand words in twelve paragraphs, of which one is the candidate's own."""
    paragraphs = [f"{paragraph}. {SENTENCE * 7}" for paragraph in range(1, 13)]
    paragraphs[5] = f"6. Wording {number}: quote the customer, and promise date {number} never."
    return "\n\n".join(paragraph.strip() for paragraph in paragraphs)
