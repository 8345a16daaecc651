"""Candidates side by side: what they earn on which evidence, how fast they are, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from prefect_mipro.artifacts.markdown import table
from prefect_mipro.models.sessions import CandidateReport, SessionStatus
from prefect_mipro.models.summaries import Evaluation


def role(report: CandidateReport, status: SessionStatus) -> str:
    """What the candidate is in its session, in a word; empty for one among others."""
    duel = status.duel
    if report.candidate_id == status.champion_candidate_id:
        return "champion"
    if report.candidate_id == status.baseline_candidate_id:
        return "baseline"
    if duel is not None and duel.state == "running" and report.candidate_id == duel.challenger_id:
        return "challenger"
    return "retired" if report.status == "retired" else ""


def finite(value: float) -> float:
    """Three decimals. Prefect writes infinity as invalid JSON; a number that is none becomes 0."""
    return round(value, 3) if math.isfinite(value) else 0.0


def comparison(status: SessionStatus, evaluations: Sequence[Evaluation] = ()) -> str:
    """A column for the baseline, the champion, and the one in the lead if that is another."""
    wanted = (
        status.baseline_candidate_id,
        status.champion_candidate_id,
        status.best_candidate_id,
    )
    reports = [
        status.candidates[candidate_id]
        for candidate_id in dict.fromkeys(wanted)
        if candidate_id in status.candidates
    ]
    held_out = {each.candidate_id: each for each in evaluations}
    rows = [
        [name, *values] for name, values in _rows(reports, held_out) if any(map(str.strip, values))
    ]
    header = [f"{role(report, status) or 'in the lead'} ({report.number})" for report in reports]
    return table(["", *header], rows)


def _rows(
    reports: Sequence[CandidateReport], held_out: dict[str, Evaluation]
) -> Iterator[tuple[str, list[str]]]:
    if held_out:
        examples = max(each.examples for each in held_out.values())
        tested = [held_out.get(report.candidate_id) for report in reports]
        yield (
            f"**Reward, {examples} held-out examples**",
            [
                _estimate(each.mean_reward, each.interval, bold=True) if each else ""
                for each in tested
            ],
        )
        yield "Failures among them", [_count(each.failures) if each else "" for each in tested]
        yield (
            "Of them without its prompt",
            [_count(each.unapplied_examples) if each else "" for each in tested],
        )

    def each(show: Callable[[CandidateReport], str]) -> list[str]:
        return [show(report) for report in reports]

    yield "Reward while learning", each(lambda r: _estimate(r.mean, r.interval, bold=not held_out))
    yield "P(best)", each(lambda r: f"{finite(r.probability_best):.2f}")
    yield "Rollouts", each(lambda r: f"{r.rollout_count:,}")
    yield "Demonstrations", each(lambda r: str(len(r.demonstrations)))
    whole = each(lambda r: _seconds(r.latency_seconds))
    first_byte = each(lambda r: _seconds(r.first_byte_seconds))
    yield "Seconds per call", whole
    if first_byte != whole:
        yield "Seconds to the first byte", first_byte
    yield "Tokens per rollout", each(_tokens)
    yield "USD per 1,000 rollouts", each(_cost)
    yield "Rollouts that its prompt failed", each(lambda r: _count(r.failures))
    yield "Calls that failed", each(lambda r: _count(r.failed_calls))
    yield "Calls without its prompt", each(lambda r: _count(r.unapplied_calls))
    yield "Rollouts without its prompt", each(lambda r: _count(r.unapplied_rollouts))


def _estimate(mean: float, interval: tuple[float, float], *, bold: bool) -> str:
    low, high = interval
    shown = f"{finite(mean):.2f}"
    return f"{f'**{shown}**' if bold else shown} ({finite(low):.2f} to {finite(high):.2f})"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{finite(seconds):.2f}"


def _tokens(report: CandidateReport) -> str:
    tokens = report.prompt_tokens + report.completion_tokens
    return f"{tokens / report.rollout_count:,.0f}" if report.rollout_count and tokens else ""


def _cost(report: CandidateReport) -> str:
    if report.cost_usd is None or not report.rollout_count:
        return ""
    return f"{1000 * report.cost_usd / report.rollout_count:,.2f}"


def _count(count: int) -> str:
    """Blank for none: a row of zeros says nothing."""
    return f"{count:,}" if count else ""
