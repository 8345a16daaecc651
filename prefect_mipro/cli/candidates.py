"""The candidates of a session: the leaderboard, one with its prompt, promotion, retirement."""

from __future__ import annotations

import argparse
from itertools import takewhile

from prefect_mipro.cli.backend import backend_of
from prefect_mipro.cli.exits import PROGRAM, ExitCode
from prefect_mipro.cli.output import Column, Output, moment, number
from prefect_mipro.client.clients import Client
from prefect_mipro.errors import CandidateNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.sessions import CandidateReport, RetiredCandidates, SessionStatus

_COLUMNS = (
    Column("#", right=True),
    Column("role"),
    Column("reward", right=True),
    Column("95% interval"),
    Column("better", right=True),
    Column("rewards", right=True),
    Column("failures", right=True),
    Column("shots", right=True),
    Column("origin", gives=True),
    Column("candidate", gives=True),
    Column("instruction", gives=True),
)
_SHOWN_CHARACTERS = 60


def run(options: argparse.Namespace) -> ExitCode:
    """`candidates`, `promote`, `retire` and `retire-lever`. Raises what the backend refuses."""
    output = Output(as_json=options.json)
    with backend_of(options) as client:
        if options.command == "retire-lever":
            report = client.retire_lever(
                options.session, options.lever, options.version, reason=options.reason
            )
            return _retired(output, report)
        status = client.session_status(options.session)
        if options.command == "promote":
            return _promote(client, output, status, options.candidate, reason=options.reason)
        if options.command == "retire":
            candidate_id = _found(status, options.candidate).candidate_id
            return _retired(output, client.retire(candidate_id, reason=options.reason))
        if options.candidate is None:
            return _leaderboard(output, status)
        return _one(client, output, status, options.candidate)


def ranked(status: SessionStatus) -> list[CandidateReport]:
    """By what is believed of their rewards, the best first."""
    return sorted(status.candidates.values(), key=lambda report: (-report.mean, report.number))


def _leaderboard(output: Output, status: SessionStatus) -> ExitCode:
    reports = ranked(status)
    if output.as_json:
        items = [{**each.model_dump(mode="json"), "role": _role(each, status)} for each in reports]
        output.document({"session_id": status.session_id, "items": items})
    else:
        output.table(_COLUMNS, [_row(report, status) for report in reports])
    return ExitCode.OK


def _one(client: Client, output: Output, status: SessionStatus, told: str) -> ExitCode:
    report = _found(status, told)
    lineage: JsonObject = client.candidate(report.candidate_id).get("lineage") or {}
    if output.as_json:
        output.document(
            {
                **report.model_dump(mode="json"),
                "role": _role(report, status),
                "lineage": lineage,
            }
        )
        return ExitCode.OK
    low, high = report.interval
    output.facts(
        {
            "candidate": f"#{report.number} {report.candidate_id}",
            "role": _role(report, status),
            "reward": f"{number(report.mean)} ({number(low)} to {number(high)}) "
            f"from {report.reward_count} rewards",
            "P(better)": f"{number(report.probability_better)} than the champion",
            **_failures(report),
            "parent": report.parent_id or "",
            "created (UTC)": moment(report.created_at),
            **{name: _origin(version) for name, version in lineage.items()},
        }
    )
    output.passage("the whole instruction", report.instruction or "(empty)")
    for shown in report.demonstrations:
        output.passage("demonstration", f"user: {shown['input']}\nassistant: {shown['output']}")
    return ExitCode.OK


def _promote(
    client: Client, output: Output, before: SessionStatus, told: str, *, reason: str | None
) -> ExitCode:
    # Not every candidate that was retired is listed, and the backend knows them all by their ids.
    candidate_id = _found(before, told).candidate_id if _is_number(told) else told
    status = client.promote(before.session_id, candidate_id, reason=reason)
    if output.as_json:
        output.document(status.model_dump(mode="json"))
    elif before.champion_candidate_id == candidate_id:
        output.line(f"{_named(status, candidate_id)} is the champion already")
    else:
        output.line(f"{_named(status, candidate_id)} is the champion of {status.session_id}")
        output.line(f"the way back: {PROGRAM} promote {status.session_id} {_way_back(before)}")
    return ExitCode.OK


def _retired(output: Output, report: RetiredCandidates) -> ExitCode:
    if output.as_json:
        output.document(report.model_dump(mode="json"))
        return ExitCode.OK
    for candidate_id in report.retired_candidates:
        output.line(f"{candidate_id} is retired")
    if not report.retired_candidates:
        output.line("nothing to retire: it is out of play already")
    change = "is the champion now" if report.champion_replaced else "is still the champion"
    output.line(f"{report.champion_candidate_id} {change}")
    return ExitCode.OK


def _failures(report: CandidateReport) -> dict[str, str]:
    """What there is to say about them and about a retirement."""
    facts = {}
    if report.failures:
        rate = f", {report.failure_rate:.0%} of its calls" if report.failure_rate else ""
        facts["failures"] = f"{report.failures}{rate}; the last: {report.last_failure}"
    if report.retired_reason:
        facts["retired because"] = report.retired_reason
    return facts


def _is_number(told: str) -> bool:
    return told.removeprefix("#").isdecimal()


def _named(status: SessionStatus, candidate_id: str) -> str:
    report = status.candidates.get(candidate_id)
    return f"#{report.number} {candidate_id}" if report else candidate_id


def _way_back(before: SessionStatus) -> str:
    champion = before.candidates.get(before.champion_candidate_id)
    return str(champion.number) if champion else before.champion_candidate_id


def _found(status: SessionStatus, told: str) -> CandidateReport:
    """The candidate of that id or number. Raises CandidateNotFound."""
    for report in status.candidates.values():
        if told in (report.candidate_id, str(report.number), f"#{report.number}"):
            return report
    numbers = sorted(report.number for report in status.candidates.values())
    raise CandidateNotFound(
        f"session {status.session_id!r} has no candidate {told!r}; "
        f"its numbers go from {numbers[0]} to {numbers[-1]}"
    )


def _row(report: CandidateReport, status: SessionStatus) -> tuple[str, ...]:
    low, high = report.interval
    return (
        str(report.number),
        _role(report, status),
        number(report.mean),
        f"{number(low)}-{number(high)}",
        number(report.probability_better, digits=2),
        str(report.reward_count),
        str(report.failures),
        str(len(report.demonstrations)),
        report.origin,
        report.candidate_id,
        _what_is_new(report.instruction, status),
    )


def _what_is_new(instruction: str, status: SessionStatus) -> str:
    """Where an instruction parts from the baseline's: most begin alike."""
    words = instruction.split()
    baseline = status.candidates.get(status.baseline_candidate_id)
    if baseline is not None and baseline.instruction != instruction:
        pairs = zip(words, baseline.instruction.split(), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        words = [*(["…"] if shared else []), *words[shared:]]
    text = " ".join(words)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _role(report: CandidateReport, status: SessionStatus) -> str:
    roles = {
        status.champion_candidate_id: "champion",
        status.best_candidate_id: "in the lead",
        status.baseline_candidate_id: "baseline",
    }
    # The champion first: it may be the baseline, and in the lead too.
    if report.candidate_id == status.champion_candidate_id:
        return "champion"
    return roles.get(report.candidate_id, report.status)


def _origin(version: JsonObject) -> str:
    parent = f", from version {version['parent_version']}" if version.get("parent_version") else ""
    words = [str(version.get(name) or "") for name in ("actor", "operator", "reason")]
    return f"version {version['version']}{parent}: {', '.join(word for word in words if word)}"
