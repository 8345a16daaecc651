"""What a session's status looks like: progress, leaderboard, champion and sensors. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect_mipro.artifacts.charts import Bar, Level, Point, data_uri, interval_chart, line_chart
from prefect_mipro.artifacts.comparison import comparison, finite, role
from prefect_mipro.artifacts.differences import difference
from prefect_mipro.artifacts.markdown import cell, fenced, folded, one_line
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.sessions import CandidateReport, SessionStatus
from prefect_mipro.models.summaries import Evaluation, wilson_interval

LEADERBOARD_ROWS = 50
CHART_CANDIDATES = 16
CURVE_POINTS = 12
LEAST_BLOCK = 20
STRIP_LETTERS = 16
# A longer instruction opens on a click.
SHOWN_CHARACTERS = 2_000
COLORS = {
    "champion": "#15803d",
    "baseline": "#b45309",
    "challenger": "#2563eb",
    "retired": "#9ca3af",
    "": "#6366f1",
}

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
    """The number first, because Prefect's cards show thirty letters; then what it rests on."""
    champion, baseline = _champion(status), _baseline(status)
    if champion is None:
        return f"{status.reward_count:,} rewards so far, no candidate yet."
    if baseline is None or baseline is champion:
        parts = [f"{finite(champion.mean):.2f}: {_name(champion, status)} is champion"]
        ranges = _range(champion)
    else:
        way = "up from" if champion.mean >= baseline.mean else "down from"
        means = f"{finite(champion.mean):.2f}, {way} {finite(baseline.mean):.2f}"
        parts = [f"{means}: {_name(champion, status)} is champion"]
        ranges = f"{_range(champion)}; the baseline {_range(baseline)}"
    parts[0] += f" ({ranges})"
    leader = status.candidates.get(status.best_candidate_id)
    if leader is not None and leader not in (champion, baseline):
        lead = f"{finite(leader.mean):.2f} ({_range(leader)})"
        parts.append(f"Candidate {leader.number} leads with {lead}")
    parts.append(f"{status.reward_count:,} rewards over {len(status.candidates)} candidates")
    return f"{'. '.join(parts)}."


def leaderboard(status: SessionStatus) -> list[Row]:
    """One row per candidate, champion first, then by mean reward; finite numbers and escaped text.

    Prefect's tables show only a list of dicts, and take the columns from the first.
    """
    champion_id = status.champion_candidate_id
    ranked = sorted(
        status.candidates.values(),
        key=lambda report: (report.candidate_id != champion_id, -finite(report.mean)),
    )
    return [
        {
            "candidate": report.number,
            "role": role(report, status),
            "mean reward": finite(report.mean),
            "95% low": finite(report.interval[0]),
            "95% high": finite(report.interval[1]),
            "from 0 to 1": _strip(report),
            "P(best)": finite(report.probability_best),
            "rewards": report.reward_count,
            "demonstrations": len(report.demonstrations),
            "parent": _parent_number(report, status),
            "origin": cell(_origin(report), characters=40),
            "instruction": cell(report.instruction),
            "rollouts": report.rollout_count,
            "failures": report.failures,
            "failure rate": _finite_or_blank(report.failure_rate),
            "retired because": cell(report.retired_reason or ""),
            "raw mean": _finite_or_blank(report.avg_reward),
            "tokens": report.prompt_tokens + report.completion_tokens,
            "cost USD": _finite_or_blank(report.cost_usd),
            "latency s": _finite_or_blank(report.latency_seconds),
            "first byte s": _finite_or_blank(report.first_byte_seconds),
            "id": cell(report.candidate_id),
        }
        for report in ranked[:LEADERBOARD_ROWS]
    ]


def held_out(status: SessionStatus, evaluations: Sequence[Evaluation]) -> list[Row]:
    """One row per candidate that was evaluated on held-out examples."""
    return [
        {
            "candidate": status.candidates[each.candidate_id].number,
            "mean reward": each.mean_reward,
            "95% low": each.interval[0],
            "95% high": each.interval[1],
            "examples": each.examples,
            "failures": each.failures,
            "id": each.candidate_id,
        }
        for each in evaluations
    ]


def evaluation_of(row: Mapping[str, Any]) -> Evaluation:
    """The evaluation that a row of `held_out` shows."""
    return Evaluation(
        candidate_id=row["id"],
        examples=row["examples"],
        failures=row["failures"],
        mean_reward=row["mean reward"],
        interval=(row["95% low"], row["95% high"]),
    )


def sensor_frames(status: SessionStatus) -> list[Row]:
    """One row per recent sensor frame, in the order of the status."""
    return [
        {
            "frame": cell(frame.frame_id),
            "created": frame.created_at.isoformat(timespec="seconds") if frame.created_at else "",
            "sensors": frame.sensor_count or 0,
            "kinds": cell(", ".join(frame.sensor_kinds)),
            "lever versions": cell(
                ", ".join(
                    f"{lever} = {version}"
                    for lever, version in sorted(frame.lever_versions.items())
                )
            ),
            "traces": cell(", ".join(frame.trace_ids)),
        }
        for frame in status.sensor_frames[:LEADERBOARD_ROWS]
    ]


def champion_page(status: SessionStatus, *, evaluations: Sequence[Evaluation] = ()) -> str:
    """The champion in markdown: comparison, prompt, what changed, reward curve, candidates."""
    champion, baseline = _champion(status), _baseline(status)
    shown = headline(status) if champion is None else comparison(status, evaluations)
    parts = [f"# Champion of {cell(status.session_id)}", shown]
    if status.reward_curve:
        parts += ["## Reward", _picture("Mean reward over the rollouts", reward_chart(status))]
    if champion is not None:
        if baseline is not None and baseline is not champion:
            parts += ["## Changed against the baseline", *_changes(baseline, champion)]
        parts += ["## Prompt", *_prompt(champion)]
    if len(status.candidates) > 1:
        picture = _picture(_spoken(status), candidates_chart(status))
        parts += ["## Candidates", picture, *_left_out(status)]
    if status.reviews:
        parts += ["## Waiting for a review", *_waiting(status)]
    parts += ["## Session", "\n".join(f"- {remark}" for remark in _remarks(status))]
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
        levels.append(Level("baseline", finite(baseline.mean), COLORS["baseline"]))
    if champion is not None and champion is not baseline:
        levels.append(Level("champion", finite(champion.mean), COLORS["champion"]))
    return line_chart(
        points,
        x_label="rollouts",
        y_label="mean reward, 95 % interval",
        levels=levels,
    )


def candidates_chart(status: SessionStatus) -> str:
    """Mean and interval of each candidate as SVG, in a tree of who came from whom.

    Shown are the candidates with the most rewards, and all that they came from.
    """
    rows: dict[str, int] = {}
    bars = []
    for report in _family_tree(status):
        rows[report.candidate_id] = len(rows)
        word = role(report, status)
        low, high = report.interval
        bars.append(
            Bar(
                label=f"{report.number} {word or one_line(_origin(report), characters=26)}",
                mean=finite(report.mean),
                low=finite(low),
                high=finite(high),
                count=f"{report.reward_count:,} rewards",
                color=COLORS[word],
                parent=rows.get(report.parent_id or ""),
                strong=word == "champion",
            )
        )
    baseline = _baseline(status)
    levels = [Level("baseline", finite(baseline.mean), COLORS["baseline"])] if baseline else []
    return interval_chart(bars, x_label="mean reward, 95 % interval", levels=levels)


def _blocks(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float, int]]:
    """Neighbours put together until few are left, each large enough to say something.

    A block is (last rollout, mean, number of rollouts).
    """
    least = max(LEAST_BLOCK, curve[-1][0] / CURVE_POINTS) if curve else 0
    blocks: list[tuple[int, float, int]] = []
    before = first = 0
    total = 0.0
    for last, mean in curve:
        total += mean * (last - before)
        before = last
        if last - first >= least:
            blocks.append((last, total / (last - first), last - first))
            first, total = last, 0.0
    if before > first:
        # What is left over joins the last block, unless it is the only one.
        end, mean, count = blocks.pop() if blocks else (0, 0.0, 0)
        rest = before - first
        blocks.append((end + rest, (mean * count + total) / (count + rest), count + rest))
    return blocks


def _family_tree(status: SessionStatus) -> list[CandidateReport]:
    """The family, each after its parent and before its parent's next child."""
    family = _family(status)
    known = {report.candidate_id for report in family}
    children: dict[str, list[CandidateReport]] = {}
    for report in family:
        parent = report.parent_id if report.parent_id in known else None
        children.setdefault(parent or "", []).append(report)
    ordered: list[CandidateReport] = []
    waiting = children.get("", [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += children.get(ordered[-1].candidate_id, [])[::-1]
    return ordered


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
    for report in ranked[:CHART_CANDIDATES]:
        member: CandidateReport | None = report
        while member is not None and member.candidate_id not in family:
            family[member.candidate_id] = member
            member = status.candidates.get(member.parent_id or "")
    return sorted(family.values(), key=lambda report: report.number)


def _left_out(status: SessionStatus) -> Iterator[str]:
    left = len(status.candidates) - len(_family(status))
    if left:
        yield f"{left} more candidates with fewer rewards are in the leaderboard."


def _spoken(status: SessionStatus) -> str:
    """The chart in words, for those who cannot see it and for UIs that do not show it."""
    told = (
        f"{report.number} {role(report, status)}".strip() + f" {finite(report.mean):.2f}"
        for report in _family_tree(status)
    )
    return f"Mean rewards: {', '.join(told)}"


def _picture(words: str, svg: str) -> str:
    return f"![{words}]({data_uri(svg)})"


def _prompt(champion: CandidateReport) -> Iterator[str]:
    instruction = champion.instruction or "(the caller's own)"
    if len(instruction) > SHOWN_CHARACTERS:
        words = len(instruction.split())
        yield folded(f"The instruction, {words:,} words", fenced(instruction))
    else:
        yield fenced(instruction)
    count = len(champion.demonstrations)
    if count:
        turns = "\n\n".join(
            f"user: {turn.get('input', '')}\nassistant: {turn.get('output', '')}\n"
            f"({_shown_because(turn)})"
            for turn in champion.demonstrations
        )
        yield folded(f"{_demonstrations(count)}, sent as chat turns in this order", fenced(turns))


def _waiting(status: SessionStatus) -> Iterator[str]:
    """The sets that no user is shown before a person approves them, and how that is done."""
    yield (
        "These texts of users become demonstrations only when a person approves them: "
        "`prefect-mipro reviews approve` or `decline`, or the task `review_demonstrations`."
    )
    for review in status.reviews:
        turns = "\n\n".join(
            f"{position}. user: {shown.input}\nassistant: {shown.output}"
            for position, shown in enumerate(review.demonstrations, start=1)
        )
        count = _demonstrations(len(review.demonstrations))
        yield folded(f"Set {review.version}, {count}", fenced(turns))


def _shown_because(turn: JsonObject) -> str:
    """Where the texts came from, and on whose word they are shown."""
    source = turn.get("source")
    parts = [
        _SOURCES.get(str(source), "of unknown origin"),
        f"example {turn['example_id']}" if turn.get("example_id") else "",
        f"rollout {turn['rollout_id']}" if turn.get("rollout_id") else "",
    ]
    return ", ".join(filter(None, parts))


_SOURCES = {
    "marked": "marked as shareable by the caller",
    "reviewed": "from traffic, approved by a person",
    "traffic": "from traffic, which the config allows",
}


def _changes(baseline: CandidateReport, champion: CandidateReport) -> Iterator[str]:
    yield difference(baseline.instruction, champion.instruction)
    before, after = len(baseline.demonstrations), len(champion.demonstrations)
    if before != after:
        yield f"It has {_demonstrations(after)}, the baseline has {before or 'none'}."


def _demonstrations(count: int) -> str:
    return f"{count or 'no'} demonstration{'' if count == 1 else 's'}"


def _remarks(status: SessionStatus) -> Iterator[str]:
    apply = status.context_apply
    if apply.unapplied_calls:
        yield (
            f"In {apply.unapplied_calls} of {apply.calls} calls the candidate's prompt could not "
            f"take the baseline's place: {cell(apply.last_reason or 'no reason given')}"
        )
    if apply.unapplied_rollouts:
        yield (
            f"{apply.unapplied_rollouts} of {status.rollout_count} rollouts ran without their "
            "candidate's prompt. Their rewards are kept and count for no candidate."
        )
    duel = status.duel
    if duel is not None:
        yield (
            f"Duel {duel.number} is {cell(duel.state)}: {duel.observations} rewards, evidence "
            f"{finite(duel.e_value):g}, promotion at {finite(duel.threshold):g}. So many rewards "
            f"prove a lift of {finite(duel.detectable_lift):.2f} about half of the time."
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
    return "the baseline" if is_baseline else f"candidate {report.number}"


def _parent_number(report: CandidateReport, status: SessionStatus) -> int | str:
    parent = status.candidates.get(report.parent_id or "")
    return parent.number if parent else ""


def _strip(report: CandidateReport) -> str:
    """Mean and interval drawn in letters of one width, for a cell that shows text only."""
    low, high = (_place(bound) for bound in report.interval)
    mean = _place(report.mean)
    return "".join(
        "█" if place == mean else "━" if low <= place <= high else "─"
        for place in range(STRIP_LETTERS)
    )


def _place(reward: float) -> int:
    return min(STRIP_LETTERS - 1, max(0, int(finite(reward) * STRIP_LETTERS)))


def _origin(report: CandidateReport) -> str:
    return report.origin.replace("_", " ")


def _range(report: CandidateReport) -> str:
    low, high = report.interval
    return f"{finite(low):.2f} to {finite(high):.2f}"


def _finite_or_blank(value: float | None) -> float | str:
    return "" if value is None else finite(value)
