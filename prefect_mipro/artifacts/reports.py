"""What a session's status looks like: progress, leaderboard, champion and sensors. No I/O."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import textwrap
from collections.abc import Iterator, Sequence

from prefect_mipro.artifacts.charts import Level, Point, data_uri, line_chart
from prefect_mipro.artifacts.markdown import cell, fenced, folded, one_line, table
from prefect_mipro.models.sessions import CandidateReport, SessionStatus
from prefect_mipro.models.summaries import Evaluation, wilson_interval

LEADERBOARD_ROWS = 50
LINEAGE_CANDIDATES = 16
CURVE_POINTS = 20
DIFF_WIDTH = 100
CHAMPION_COLOR, BASELINE_COLOR = "#15803d", "#b45309"

Row = dict[str, str | int | float]


def artifact_key(session_id: str, name: str) -> str:
    """`mipro-<session>-<name>`, in the letters Prefect allows. Different sessions never share it.

    Keys are global to a Prefect server.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", session_id.lower()).strip("-")[:80].strip("-")
    if slug != session_id:
        slug = f"{slug}-{hashlib.sha256(session_id.encode()).hexdigest()[:8]}"
    return f"mipro-{slug.lstrip('-')}-{name}"


def progress(status: SessionStatus, *, done: int, planned: int) -> float:
    """Percent of the planned rollouts that are done; 100 for a session that has ended."""
    if status.status.final or planned <= 0:
        return 100.0
    return round(100.0 * min(done, planned) / planned, 1)


def headline(status: SessionStatus) -> str:
    """One sentence: who is champion, against which baseline, who is in the lead."""
    champion, baseline = _champion(status), _baseline(status)
    if champion is None:
        return f"{status.reward_count} rewards so far, no candidate yet."
    parts = [f"{_name(champion, status)} is champion at {_estimate(champion)}"]
    if baseline is not None and baseline is not champion:
        parts.append(f"the baseline stands at {_estimate(baseline)}")
    leader = status.candidates.get(status.best_candidate_id)
    if leader is not None and leader not in (champion, baseline):
        parts.append(f"candidate {leader.number} leads with {_estimate(leader)}")
    parts.append(f"{status.reward_count} rewards over {len(status.candidates)} candidates")
    return f"{'; '.join(parts)}."


def leaderboard(status: SessionStatus) -> list[Row]:
    """One row per candidate, champion first, then by mean reward; finite numbers and plain text.

    Prefect's tables show only a list of dicts, and take the columns from the first.
    """
    champion_id = status.champion_candidate_id
    ranked = sorted(
        status.candidates.values(),
        key=lambda report: (report.candidate_id != champion_id, -_finite(report.mean)),
    )
    return [
        {
            "candidate": report.number,
            "role": _role(report, status),
            "mean reward": _finite(report.mean),
            "95% low": _finite(report.interval[0]),
            "95% high": _finite(report.interval[1]),
            "raw mean": _finite_or_blank(report.avg_reward),
            "rewards": report.reward_count,
            "rollouts": report.rollout_count,
            "P(best)": _finite(report.probability_best),
            "demonstrations": len(report.demonstrations),
            "tokens": report.prompt_tokens + report.completion_tokens,
            "cost USD": _finite_or_blank(report.cost_usd),
            "latency s": _finite_or_blank(report.latency_seconds),
            "first byte s": _finite_or_blank(report.first_byte_seconds),
            "origin": one_line(report.origin, characters=40),
            "instruction": one_line(report.instruction),
            "id": report.candidate_id,
        }
        for report in ranked[:LEADERBOARD_ROWS]
    ]


def sensor_frames(status: SessionStatus) -> list[Row]:
    """One row per recent sensor frame, in the order of the status."""
    return [
        {
            "frame": frame.frame_id,
            "created": frame.created_at.isoformat(timespec="seconds") if frame.created_at else "",
            "sensors": frame.sensor_count or 0,
            "kinds": ", ".join(frame.sensor_kinds),
            "lever versions": ", ".join(
                f"{lever} = {version}" for lever, version in sorted(frame.lever_versions.items())
            ),
            "traces": one_line(", ".join(frame.trace_ids)),
        }
        for frame in status.sensor_frames[:LEADERBOARD_ROWS]
    ]


def champion_page(status: SessionStatus, *, evaluations: Sequence[Evaluation] = ()) -> str:
    """The champion in markdown: prompt, difference to the baseline, curve, lineage, sensors."""
    champion, baseline = _champion(status), _baseline(status)
    parts = [f"# Champion of {cell(status.session_id)}", headline(status)]
    if evaluations:
        parts += ["## Held-out examples", _evaluation_table(evaluations, status)]
    if champion is not None:
        parts += ["## Prompt", *_prompt(champion)]
        if baseline is not None and baseline is not champion:
            parts += ["## Changed against the baseline", _difference(baseline, champion)]
    if status.reward_curve:
        alt = "Mean reward over the rollouts"
        parts += ["## Reward", f"![{alt}]({data_uri(reward_chart(status))})"]
    if len(status.candidates) > 1:
        parts += ["## Lineage", fenced(lineage(status), language="mermaid")]
    parts += ["## Sensors", _sensor_table(status), *_remarks(status)]
    return "\n\n".join(parts)


def reward_chart(status: SessionStatus) -> str:
    """The reward curve as SVG: means of consecutive rollouts, their band, champion, baseline."""
    points = []
    for last, mean, count in _blocks(status.reward_curve):
        low, high = wilson_interval(min(1.0, max(0.0, mean)), count)
        points.append(Point(x=float(last), mean=mean, low=low, high=high))
    champion, baseline = _champion(status), _baseline(status)
    levels = []
    if baseline is not None:
        levels.append(Level("baseline", _finite(baseline.mean), BASELINE_COLOR))
    if champion is not None and champion is not baseline:
        levels.append(Level("champion", _finite(champion.mean), CHAMPION_COLOR))
    return line_chart(
        points,
        title="Reward while learning, with its 95 % interval",
        x_label="rollouts",
        y_label="mean reward",
        levels=levels,
    )


def lineage(status: SessionStatus) -> str:
    """Who came from whom, as a mermaid graph; the champion is marked.

    Shown are the candidates with the most rewards, and all that they came from.
    """
    reports = _family(status)
    shown = {report.candidate_id: report.number for report in reports}
    lines = ["graph LR"]
    for report in reports:
        role = _role(report, status)
        name = f"{report.number} {role}".strip()
        raw = f"{_finite(report.avg_reward or 0.0):.2f} over {report.reward_count}"
        told = raw if report.reward_count else "no reward yet"
        lines.append(f'  c{report.number}["{name}: {told}"]')
        parent = shown.get(report.parent_id or "")
        if parent is not None:
            lines.append(f"  c{parent} --> c{report.number}")
        if role == "champion":
            lines.append(f"  style c{report.number} stroke:{CHAMPION_COLOR},stroke-width:3px")
    return "\n".join(lines)


def _blocks(curve: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float, int]]:
    """Neighbours put together until few enough are left: last rollout, mean, number of rollouts."""
    size = math.ceil(len(curve) / CURVE_POINTS) if curve else 1
    before = 0
    for start in range(0, len(curve), size):
        first, total = before, 0.0
        for last, mean in curve[start : start + size]:
            total += mean * (last - before)
            before = last
        count = max(1, before - first)
        yield before, total / count, count


def _family(status: SessionStatus) -> list[CandidateReport]:
    important = (
        status.champion_candidate_id,
        status.baseline_candidate_id,
        status.best_candidate_id,
    )
    ranked = sorted(
        status.candidates.values(),
        key=lambda report: (report.candidate_id not in important, -report.reward_count),
    )
    family: dict[str, CandidateReport] = {}
    for report in ranked[:LINEAGE_CANDIDATES]:
        member: CandidateReport | None = report
        while member is not None and member.candidate_id not in family:
            family[member.candidate_id] = member
            member = status.candidates.get(member.parent_id or "")
    return sorted(family.values(), key=lambda report: report.number)


def _prompt(champion: CandidateReport) -> Iterator[str]:
    yield fenced(champion.instruction or "(the caller's own)")
    count = len(champion.demonstrations)
    if count:
        turns = "\n\n".join(
            fenced(f"user: {turn.get('input', '')}\nassistant: {turn.get('output', '')}")
            for turn in champion.demonstrations
        )
        yield folded(f"{count} demonstrations, sent as chat turns in this order", turns)


def _difference(baseline: CandidateReport, champion: CandidateReport) -> str:
    lines = difflib.unified_diff(
        _wrapped(baseline.instruction),
        _wrapped(champion.instruction),
        f"candidate {baseline.number} (baseline)",
        f"candidate {champion.number} (champion)",
        lineterm="",
        n=2,
    )
    text = "\n".join(lines) or "The instruction is the same."
    more = len(champion.demonstrations) - len(baseline.demonstrations)
    return fenced(text, language="diff") + (f"\n\n{more:+d} demonstrations." if more else "")


def _wrapped(text: str) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, DIFF_WIDTH) or [""]]


def _evaluation_table(evaluations: Sequence[Evaluation], status: SessionStatus) -> str:
    rows = []
    for evaluation in evaluations:
        report = status.candidates.get(evaluation.candidate_id)
        low, high = evaluation.interval
        rows.append(
            [
                f"{report.number} {_role(report, status)}" if report else evaluation.candidate_id,
                f"{evaluation.mean_reward:.3f}",
                f"{low:.3f} to {high:.3f}",
                str(evaluation.examples),
                str(evaluation.failures),
            ]
        )
    return table(["candidate", "mean reward", "95 % interval", "examples", "failures"], rows)


def _sensor_table(status: SessionStatus) -> str:
    wanted = [_baseline(status), _champion(status)]
    reports = {report.candidate_id: report for report in wanted if report is not None}
    rows = [
        [
            f"{report.number} {_role(report, status)}".strip(),
            str(report.rollout_count),
            "" if report.latency_seconds is None else f"{report.latency_seconds:.3f}",
            str(report.prompt_tokens),
            str(report.completion_tokens),
            str(report.failed_calls),
            str(report.unapplied_calls),
        ]
        for report in reports.values()
    ]
    header = ["candidate", "rollouts", "latency in s", "prompt tokens", "completion tokens"]
    return table([*header, "failed calls", "calls without its prompt"], rows)


def _remarks(status: SessionStatus) -> Iterator[str]:
    apply = status.context_apply
    if apply.unapplied_calls:
        yield (
            f"In {apply.unapplied_calls} of {apply.calls} calls the candidate's prompt could not "
            f"take the baseline's place: {cell(apply.last_reason or 'no reason given')}"
        )
    duel = status.duel
    if duel is not None:
        yield (
            f"Duel {duel.number} is {cell(duel.state)}: {duel.observations} rewards, evidence "
            f"{_finite(duel.e_value):g}, promotion at {_finite(duel.threshold):g}. So many rewards "
            f"prove a lift of {_finite(duel.detectable_lift):.2f} about half of the time."
        )
    flow = status.reward_flow
    if flow.missing or flow.in_flight:
        yield f"{flow.in_flight} rewards are awaited, {flow.missing} count as missing."
    spent = status.spending
    if spent.cost_usd is not None:
        yield f"The session has cost {spent.cost_usd:.4f} USD, the proposer's calls included."
    if status.stop_reason:
        yield f"The session has ended: {cell(status.stop_reason, characters=400)}."
    proposer = status.proposer
    waiting = f" It waits for {cell(proposer.waiting_for)}." if proposer.waiting_for else ""
    yield f"The proposer has finished {proposer.rounds} rounds.{waiting}"
    if proposer.error:
        yield f"Its last error: {cell(proposer.error, characters=400)}"
    for warning in status.warnings:
        yield f"Warning: {cell(warning, characters=400)}"


def _champion(status: SessionStatus) -> CandidateReport | None:
    return status.candidates.get(status.champion_candidate_id)


def _baseline(status: SessionStatus) -> CandidateReport | None:
    return status.candidates.get(status.baseline_candidate_id)


def _name(report: CandidateReport, status: SessionStatus) -> str:
    is_baseline = report.candidate_id == status.baseline_candidate_id
    return "The baseline" if is_baseline else f"Candidate {report.number}"


def _role(report: CandidateReport, status: SessionStatus) -> str:
    duel = status.duel
    if report.candidate_id == status.champion_candidate_id:
        return "champion"
    if report.candidate_id == status.baseline_candidate_id:
        return "baseline"
    if duel is not None and duel.state == "running" and report.candidate_id == duel.challenger_id:
        return "challenger"
    return "retired" if report.status == "retired" else ""


def _estimate(report: CandidateReport) -> str:
    low, high = report.interval
    return f"{_finite(report.mean):.2f} ({_finite(low):.2f} to {_finite(high):.2f})"


def _finite_or_blank(value: float | None) -> float | str:
    return "" if value is None else _finite(value)


def _finite(value: float) -> float:
    """Prefect writes infinity as invalid JSON; a number that is none becomes 0."""
    return round(value, 3) if math.isfinite(value) else 0.0
