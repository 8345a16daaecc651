"""Candidates side by side: what they earn on which evidence, how fast they are, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from prefect_mipro.artifacts.markdown import NO_VALUE, table
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
    header = [f"{role(report, status) or 'in the lead'} ({report.number})" for report in reports]
    return side_by_side(list(zip(header, reports, strict=True)), evaluations)


def side_by_side(
    columns: Sequence[tuple[str, CandidateReport]], evaluations: Sequence[Evaluation] = ()
) -> str:
    """A column for each candidate under its head; what is not known of any is left out."""
    reports = [report for _, report in columns]
    shown = {report.candidate_id for report in reports}
    held_out = {each.candidate_id: each for each in evaluations if each.candidate_id in shown}
    found = _rows(reports, held_out)
    rows = [[name, *values] for name, values in found if any(map(str.strip, values))]
    return table(["", *(head for head, _ in columns)], rows)


def brief_rows(
    before: CandidateReport,
    after: CandidateReport,
    *,
    baseline: CandidateReport,
    evaluations: Sequence[Evaluation] = (),
) -> Iterator[list[str]]:
    """The rows to decide by, a name and a cell for each of the two: reward, cost and failures.

    Rewards are those on held-out examples where at least one of the two has some.
    """
    both = (before, after)
    held_out = {each.candidate_id: each for each in evaluations}
    tested = any(each.candidate_id in held_out for each in both)
    name = "Reward, held out" if tested else "Reward in traffic"
    if baseline not in both and (not tested or baseline.candidate_id in held_out):
        mean = held_out[baseline.candidate_id].mean_reward if tested else baseline.mean
        name += f" (baseline {finite(mean):.2f})"
    yield [name, *(_brief(each, held_out.get(each.candidate_id), tested) for each in both)]
    if any(map(_cost, both)):
        yield ["USD per 1,000 rollouts", *(_cost(each) or NO_VALUE for each in both)]
    else:
        yield ["Tokens per rollout", *(_tokens(each) or NO_VALUE for each in both)]
    yield ["Calls failed by prompt", *map(_failures, both)]


def _brief(report: CandidateReport, evaluation: Evaluation | None, tested: bool) -> str:
    if tested and evaluation is None:
        return f"{finite(report.mean):.2f} in traffic"
    mean, (low, high) = (
        (evaluation.mean_reward, evaluation.interval)
        if evaluation
        else (report.mean, report.interval)
    )
    return f"{finite(mean):.2f} ({finite(low):.2f}-{finite(high):.2f})"


def _failures(report: CandidateReport) -> str:
    """The share of its calls that failed because of the prompt, and their number."""
    return f"{report.failure_rate or 0.0:.0%} ({report.failures:,} of {report.calls:,})"


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
    yield "Calls that its prompt failed", each(lambda r: _failures(r) if r.failures else "")
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
