"""The candidates of a session: the leaderboard, one with its prompt, promotion, retirement."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_mipro.cli.exits import PROGRAM
from prefect_mipro.cli.options import BackendOptions, Candidate, Count, Session, Text
from prefect_mipro.cli.output import Column, Output, moment, number
from prefect_mipro.errors import CandidateNotFound

if TYPE_CHECKING:
    from prefect_mipro.client.clients import Client
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


def candidates(
    session: Session,
    candidate: Candidate | None = None,
    /,
    *,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Show the candidates of a session, or one of them.

    With a candidate: its whole prompt, and where it came from.

    Examples
      prefect-mipro candidates support-bot
      prefect-mipro candidates support-bot 7
      prefect-mipro candidates support-bot --json | jq '.items[0].instruction'
    """
    with backend.client() as client:
        status = client.session_status(session)
        if candidate is None:
            _leaderboard(backend.output, status)
        else:
            _one(client, backend.output, status, candidate)


def promote(
    session: Session,
    candidate: Candidate,
    /,
    *,
    reason: Annotated[Text | None, Parameter(help="Kept with the promotion.")] = None,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Make a candidate the champion.

    The backend promotes by itself when a duel has proved a candidate better.
    This is for everything else: a decision of your own, and the way back to an
    earlier champion.

    Examples
      prefect-mipro promote support-bot 7
      prefect-mipro promote support-bot cand_3f9a0c12 --reason "reviewed by Ada"
    """
    output = backend.output
    with backend.client() as client:
        before = client.session_status(session)
        # Not every retired candidate is listed, and the backend knows them all by their ids.
        is_number = candidate.removeprefix("#").isdecimal()
        candidate_id = _found(before, candidate).candidate_id if is_number else candidate
        status = client.promote(before.session_id, candidate_id, reason=reason)
    if output.as_json:
        output.document(status.model_dump(mode="json"))
    elif before.champion_candidate_id == candidate_id:
        output.line(f"{_named(status, candidate_id)} is the champion already")
    else:
        output.line(f"{_named(status, candidate_id)} is the champion of {status.session_id}")
        output.line(f"the way back: {PROGRAM} promote {status.session_id} {_way_back(before)}")


def retire(
    session: Session,
    candidate: Candidate,
    /,
    *,
    reason: Annotated[Text | None, Parameter(help="Kept with the candidate.")] = None,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Take a candidate out of play.

    The champion's prompt takes its place at once, also in rollouts that have
    begun. A champion is replaced by the candidate that won a duel last, else by
    the baseline, which cannot be retired. `promote` brings a retired candidate
    back.

    Examples
      prefect-mipro retire support-bot 7
      prefect-mipro retire support-bot cand_3f9a0c12 --reason "it is rude"
    """
    with backend.client() as client:
        candidate_id = _found(client.session_status(session), candidate).candidate_id
        _retired(backend.output, client.retire(candidate_id, reason=reason))


def retire_lever(
    session: Session,
    lever: Annotated[str, Parameter(help="instruction or demonstrations")],
    version: Annotated[Count, Parameter(help="The version's number.")],
    /,
    *,
    reason: Annotated[Text | None, Parameter(help="Kept with the candidates.")] = None,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Retire all candidates that hold a lever version.

    For a text that must not be shown any more: no new candidate is made with it.
    `candidates SESSION CANDIDATE` says which versions a candidate holds.

    Examples
      prefect-mipro retire-lever support-bot demonstrations 3 --reason "a real address"
      prefect-mipro retire-lever support-bot instruction 5 --json
    """
    with backend.client() as client:
        report = client.retire_lever(session, lever, version, reason=reason)
    _retired(backend.output, report)


def ranked(status: SessionStatus) -> list[CandidateReport]:
    """By what is believed of their rewards, the best first."""
    return sorted(status.candidates.values(), key=lambda report: (-report.mean, report.number))


def _leaderboard(output: Output, status: SessionStatus) -> None:
    reports = ranked(status)
    if output.as_json:
        items = [{**each.model_dump(mode="json"), "role": _role(each, status)} for each in reports]
        output.document({"session_id": status.session_id, "items": items})
    else:
        output.table(_COLUMNS, [_row(report, status) for report in reports])


def _one(client: Client, output: Output, status: SessionStatus, told: str) -> None:
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
        return
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


def _retired(output: Output, report: RetiredCandidates) -> None:
    if output.as_json:
        output.document(report.model_dump(mode="json"))
        return
    for candidate_id in report.retired_candidates:
        output.line(f"{candidate_id} is retired")
    if not report.retired_candidates:
        output.line("nothing to retire: it is out of play already")
    change = "is the champion now" if report.champion_replaced else "is still the champion"
    output.line(f"{report.champion_candidate_id} {change}")


def _failures(report: CandidateReport) -> dict[str, str]:
    """What there is to say about them and about a retirement."""
    facts = {}
    if report.failures:
        rate = f", {report.failure_rate:.0%} of its calls" if report.failure_rate else ""
        facts["failures"] = f"{report.failures}{rate}; the last: {report.last_failure}"
    if report.retired_reason:
        facts["retired because"] = report.retired_reason
    return facts


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
