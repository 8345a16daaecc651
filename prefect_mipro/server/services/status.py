"""The status object and the candidate resource, put together from facts and belief."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prefect_mipro.config import MiproConfig
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import (
    Candidate,
    CandidateStatus,
    Duel,
    DuelObservation,
    DuelState,
    Statistics,
)
from prefect_mipro.models.levers import (
    LeverName,
    LeverVersion,
    MiproLeverSummary,
    ReviewState,
    prompt_lever_id,
)
from prefect_mipro.models.reviews import DemonstrationReview
from prefect_mipro.models.sensors import SensorFrame, SensorFrameSummary
from prefect_mipro.models.sessions import (
    CandidateReport,
    ContextApply,
    DuelReport,
    LeverLineage,
    ProposerReport,
    RewardFlow,
    Session,
    SessionStatus,
    SessionUrls,
)
from prefect_mipro.optimizer.demonstrations import known_room
from prefect_mipro.optimizer.evidence import Vector
from prefect_mipro.optimizer.posterior import Posterior
from prefect_mipro.optimizer.promotion import detectable_lift, log_evidence, log_evidence_against
from prefect_mipro.server.services.beliefs import Snapshot, generator
from prefect_mipro.server.services.promotion import spending

LARGEST_LOG_E_VALUE = math.log(1e9)


@dataclass(frozen=True)
class Facts:
    """The stored facts that a status is made of."""

    session: Session
    config: MiproConfig
    snapshot: Snapshot
    totals: Statistics
    watermark: int
    levers: tuple[LeverVersion, ...]
    frames: tuple[SensorFrame, ...]
    duel: Duel | None
    observations: tuple[DuelObservation, ...]
    last_unapplied: str | None
    waiting_for: str

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates in play and those retired last, by number."""
        return self.snapshot.candidates

    @property
    def belief(self) -> Posterior:
        """The posterior of the candidates."""
        return self.snapshot.belief

    def prompt_of(self, candidate: Candidate) -> tuple[LeverVersion, LeverVersion]:
        """The candidate's instruction and demonstrations."""
        by_key = {(v.lever, v.version): v for v in self.levers}
        return (
            by_key[LeverName.INSTRUCTION, candidate.instruction_version],
            by_key[LeverName.DEMONSTRATIONS, candidate.demonstrations_version],
        )


def status_of(facts: Facts, urls: SessionUrls, warnings: Sequence[str]) -> SessionStatus:
    """Everything a status says, at this moment.

    `best_candidate_id` has the highest posterior mean among the candidates in play;
    `selected_candidate_id` is the champion, which stays the baseline until a duel is won.
    """
    session = facts.session
    reports = candidate_reports(facts)
    active = facts.snapshot.active
    best = max(active, key=lambda c: (reports[c.candidate_id].mean, -c.number))
    champion = next(c for c in facts.candidates if c.candidate_id == session.champion_id)
    numbers = {c.candidate_id: c.number for c in facts.candidates}
    totals = facts.totals
    best_reward = reports[best.candidate_id].mean if totals.rewards else None
    items = {c.candidate_id: wire_candidate(facts, reports[c.candidate_id]) for c in active}
    lever_id = prompt_lever_id(session.session_id)
    return SessionStatus(
        **urls.model_dump(),
        session_id=session.session_id,
        system_id=session.session_id,
        job_id=job_id(session.session_id),
        kind=session.kind,
        status=session.state,
        state=session.state,
        correlation_id=session.correlation_id,
        agent_id=session.agent_id,
        version=session.version,
        rollout_count=totals.rollouts,
        reward_count=session.rewards,
        removed_rollout_count=session.removed_rollouts,
        proposal_seq=session.proposal_number,
        best_reward=best_reward,
        best_score=best_reward,
        best_candidate_id=best.candidate_id,
        best_candidate=items[best.candidate_id],
        champion_candidate_id=champion.candidate_id,
        baseline_candidate_id=session.baseline_id,
        lever_summary=MiproLeverSummary(
            prompt_lever_id=lever_id,
            candidate_lever_versions=numbers,
            best_candidate_id=best.candidate_id,
            selected_candidate_id=champion.candidate_id,
            baseline_candidate_id=session.baseline_id,
            lever_count=len(facts.candidates),
            mutation_count=len(facts.candidates) - 1,
            latest_version=max(numbers.values()),
        ),
        lever_versions=champion.lever_versions,
        best_lever_version=best.number,
        prompt_lever_id=lever_id,
        candidate_lever_versions=numbers,
        sensor_frames=[_frame_summary(frame) for frame in facts.frames],
        candidates=reports,
        attempted_candidates=[i for i in items.values() if i["status"] != CandidateStatus.PROPOSED],
        optimized_candidates=[items[champion.candidate_id]],
        context_apply=ContextApply(
            calls=totals.calls,
            unapplied_calls=totals.unapplied_calls,
            unapplied_rollouts=totals.unapplied_rollouts,
            last_reason=facts.last_unapplied,
        ),
        proposer=ProposerReport(
            rounds=session.proposal_number,
            failures=session.proposal_failures,
            error=session.proposal_error,
            waiting_for=facts.waiting_for or None,
            warning=session.proposal_warning,
        ),
        duel=_duel_report(facts),
        reward_flow=RewardFlow(
            rewarded=totals.rewards,
            in_flight=totals.in_flight,
            missing=totals.missing,
            watermark=facts.watermark,
        ),
        reward_curve=list(_reward_curve(facts)),
        exploration_value=facts.belief.exploration_value(
            _rng(facts), active=facts.snapshot.active_ids
        ),
        spending=spending(session, facts.config, totals),
        epoch=session.epoch,
        promotions=session.promotions,
        stop_reason=session.stop_reason,
        reviews=_reviews(facts),
        warnings=[*warnings, *_loud(facts)],
        metadata=session.metadata,
        created_at=session.created_at,
        updated_at=session.updated_at,
    )


def candidate_reports(facts: Facts) -> dict[str, CandidateReport]:
    """A report of every candidate, by id, in order of number."""
    best = facts.belief.probability_best(_rng(facts), active=facts.snapshot.active_ids)
    return {
        c.candidate_id: _report(facts, c, probability_best=float(best[i]))
        for i, c in enumerate(facts.candidates)
    }


def lineage(facts: Facts, candidate_id: str) -> dict[LeverName, LeverLineage]:
    """Where each lever version of a candidate came from."""
    candidate = next(c for c in facts.candidates if c.candidate_id == candidate_id)
    return {
        version.lever: LeverLineage(
            version=version.version,
            parent_version=version.parent_version,
            actor=version.provenance.actor,
            operator=version.provenance.operator,
            reason=version.provenance.reason,
            template_version=version.provenance.template_version,
            source_trace_ids=version.provenance.source_trace_ids,
            created_at=version.created_at,
        )
        for version in facts.prompt_of(candidate)
    }


def wire_candidate(facts: Facts, report: CandidateReport) -> JsonObject:
    """A candidate as the wire's candidate resource has it, section 8.1, without its lineage."""
    return {
        "candidate_id": report.candidate_id,
        "system_id": facts.session.session_id,
        "job_id": job_id(facts.session.session_id),
        "candidate_type": "prompt",
        "artifact_kind": "prompt",
        "artifact_payload": {
            "instruction": report.instruction,
            "demonstrations": report.demonstrations,
        },
        "prompt_text": report.instruction,
        "status": report.status,
        "optimization_mode": "online",
        "score": report.mean if report.reward_count else None,
        "objective": {"reward": report.mean} if report.reward_count else None,
        "mean_reward": report.avg_reward,
        "avg_reward": report.avg_reward,
        "reward_interval": list(report.interval),
        "rollout_count": report.rollout_count,
        "reward_count": report.reward_count,
        "parent_id": report.parent_id,
        "generation": report.number - 1,
        "lever_version": report.number,
        "created_at": report.created_at.isoformat(),
        "updated_at": facts.session.updated_at.isoformat(),
        "metadata": {"label": report.label, "origin": report.origin},
    }


def job_id(session_id: str) -> str:
    """The id under which older clients know the session: `pl_` and 16 hexadecimal digits."""
    return f"pl_{hashlib.sha256(session_id.encode()).hexdigest()[:16]}"


def _rng(facts: Facts) -> np.random.Generator:
    """A random generator that depends on the state alone: the same state reads the same."""
    return generator(facts.config, facts.session, facts.session.version)


def _reward_curve(facts: Facts) -> Iterator[tuple[int, float]]:
    """The last position and the mean reward of each stretch whose rewards are all in."""
    stretches: dict[int, tuple[int, float]] = {}
    for block in facts.snapshot.blocks:
        rewards, reward_sum = stretches.get(block.last, (0, 0.0))
        stretches[block.last] = (rewards + block.rewards, reward_sum + block.reward_sum)
    for last, (rewards, reward_sum) in sorted(stretches.items()):
        if last <= facts.watermark:
            yield last, reward_sum / rewards


def _report(facts: Facts, candidate: Candidate, *, probability_best: float) -> CandidateReport:
    belief = facts.belief
    instruction, demonstrations = facts.prompt_of(candidate)
    counted = candidate.statistics
    is_baseline = candidate.candidate_id == facts.session.baseline_id
    newest = max((instruction, demonstrations), key=lambda version: version.created_at)
    shown = [d.model_dump(mode="json", exclude_none=True) for d in demonstrations.demonstrations]
    payload: JsonObject = {"instruction_text": instruction.text, "demonstrations": shown}
    prompt = facts.config.initial_prompt
    return CandidateReport(
        candidate_id=candidate.candidate_id,
        number=candidate.number,
        parent_id=candidate.parent_id,
        label=candidate.label,
        status=_status_word(candidate),
        instruction_version=candidate.instruction_version,
        demonstrations_version=candidate.demonstrations_version,
        rollout_count=counted.rollouts,
        reward_count=counted.rewards,
        avg_reward=counted.mean_reward,
        mean=float(belief.mean[belief.index(candidate.candidate_id)]),
        interval=belief.interval(candidate.candidate_id),
        probability_best=probability_best,
        probability_better=(
            0.5
            if candidate.candidate_id == facts.session.champion_id
            else belief.probability_better(candidate.candidate_id, than=facts.session.champion_id)
        ),
        calls=counted.calls,
        failed_calls=counted.failed_calls,
        failures=counted.failures,
        failure_rate=_mean(counted.failures, counted.calls),
        last_failure=candidate.last_failure if counted.failures else None,
        retired_reason=candidate.retired_reason,
        unapplied_calls=counted.unapplied_calls,
        unapplied_rollouts=counted.unapplied_rollouts,
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        cost_usd=counted.cost_usd_sum if facts.config.has_prices else None,
        latency_seconds=_mean(counted.latency_seconds_sum, counted.calls - counted.untimed_calls),
        first_byte_seconds=_mean(counted.first_byte_seconds_sum, counted.first_byte_calls),
        instruction=instruction.text,
        demonstrations=shown,
        origin=newest.provenance.operator or newest.provenance.reason or "baseline",
        created_at=candidate.created_at,
        stage_payloads={} if is_baseline else {"default": payload},
        deltas=None if is_baseline else payload,
        baseline_messages=(
            [{"role": m.role, "content": m.pattern} for m in prompt.ordered] if prompt else []
        )
        if is_baseline
        else None,
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def _status_word(candidate: Candidate) -> CandidateStatus:
    if not candidate.active:
        return CandidateStatus.RETIRED
    return CandidateStatus.EVALUATED if candidate.statistics.rewards else CandidateStatus.PROPOSED


def _frame_summary(frame: SensorFrame) -> SensorFrameSummary:
    return SensorFrameSummary(
        frame_id=frame.frame_id,
        created_at=frame.created_at,
        sensor_count=len(frame.sensors),
        sensor_kinds=tuple(dict.fromkeys(sensor.kind.value for sensor in frame.sensors)),
        trace_ids=frame.trace_ids,
        lever_versions=frame.lever_versions,
    )


def _duel_report(facts: Facts) -> DuelReport | None:
    duel = facts.duel
    if duel is None:
        return None
    settings = facts.config.mipro.promotion
    asked = {"predicted_lift": duel.predicted_lift, "min_lift": settings.min_lift}
    won = duel.state is DuelState.WON
    lost = duel.state is DuelState.LOST
    return DuelReport(
        number=duel.number,
        champion_id=duel.champion_id,
        challenger_id=duel.challenger_id,
        state=duel.state,
        rollouts=duel.rollouts,
        rewards=duel.rewards,
        observations=len(facts.observations),
        e_value=_e_value(log_evidence(facts.observations, **asked), decided=won),
        e_value_against=_e_value(log_evidence_against(facts.observations, **asked), decided=lost),
        threshold=1.0 / settings.alpha,
        predicted_lift=duel.predicted_lift,
        detectable_lift=detectable_lift(
            len(facts.observations),
            alpha=settings.alpha,
            sd=math.sqrt(facts.belief.reward_variance),
        ),
    )


def _e_value(log_evidence: Vector, *, decided: bool) -> float:
    """The newest e-value; the largest one for a duel that it decided, which nothing undoes."""
    if not len(log_evidence):
        return 1.0
    log_e = log_evidence.max() if decided else log_evidence[-1]
    return float(np.exp(min(log_e, LARGEST_LOG_E_VALUE)))


def _reviews(facts: Facts) -> tuple[DemonstrationReview, ...]:
    return tuple(
        DemonstrationReview.of(facts.session.session_id, version)
        for version in facts.levers
        if version.review_is(ReviewState.WAITING)
    )


def _loud(facts: Facts) -> list[str]:
    """Warnings that a user must not overlook."""
    totals = facts.totals
    loud = []
    if totals.unapplied_calls or totals.unapplied_rollouts:
        loud.append(
            f"{totals.unapplied_calls} of {totals.calls} calls were served as they came, without "
            f"the candidate's prompt, and {totals.unapplied_rollouts} of {totals.rollouts} "
            "rollouts do not count for that: "
            f"{facts.last_unapplied or 'the messages did not match initial_prompt'}; "
            "send the messages of prompt_learning.initial_prompt, or state your own there"
        )
    if totals.failures:
        loud.append(
            f"{totals.failures} rollouts failed because of their candidates' prompts; see failures "
            "and last_failure of the candidates"
        )
    room = known_room(facts.candidates)
    if room is not None:
        loud.append(
            f"demonstration sets have {room} characters at most: longer ones passed the model's "
            "context"
        )
    if waiting := len(_reviews(facts)):
        sets = "a demonstration set waits" if waiting == 1 else f"{waiting} demonstration sets wait"
        loud.append(
            f"{sets} for a person's review: prefect-mipro reviews list {facts.session.session_id}"
        )
    if facts.session.proposal_warning:
        loud.append(f"the last round of proposals: {facts.session.proposal_warning}")
    return loud
