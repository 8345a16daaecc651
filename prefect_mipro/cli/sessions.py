"""The commands for sessions: list, show, steer, export, import, delete, forget."""

from __future__ import annotations

import argparse
import sys
from urllib.parse import urlsplit

from prefect_mipro.cli import exports, imports
from prefect_mipro.cli.backend import backend_of
from prefect_mipro.cli.exits import ExitCode, say
from prefect_mipro.cli.output import NOTHING, Column, Output, moment, number
from prefect_mipro.client.clients import Client
from prefect_mipro.client.operations import LARGEST_PAGE
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.sessions import SessionState, SessionStatus

_COLUMNS = (
    Column("session"),
    Column("state"),
    Column("rollouts", right=True),
    Column("rewards", right=True),
    Column("updated (UTC)"),
    Column("champion", gives=True),
)
# What cannot be undone, and what to say of it.
_FINAL = {
    "cancel": ("Cancel", "It cannot be resumed."),
    "delete": ("Delete", "Its prompts, rewards and traces go with it."),
    "forget": ("Forget this data of", "Candidates that show it are retired; --dry-run says which."),
}
_STATE_AFTER = {
    "pause": SessionState.PAUSED,
    "resume": SessionState.RUNNING,
    "cancel": SessionState.CANCELLED,
}


def run(options: argparse.Namespace) -> ExitCode:
    """One of the actions on sessions. Raises what the backend refuses."""
    output = Output(as_json=options.json)
    if options.action in _FINAL and not _is_sure(options):
        return ExitCode.USAGE
    with backend_of(options) as client:
        if options.action == "list":
            return _list(client, output, state=options.state, limit=options.limit)
        if options.action == "export":
            return exports.run(client, output, options)
        if options.action == "import":
            return imports.run(client, output, options.file)
        if options.action == "delete":
            deleted = client.delete_session(options.session)
            output.outcome(deleted.model_dump(mode="json"), f"{deleted.session_id} is deleted")
            return ExitCode.OK
        if options.action == "forget":
            return _forget(client, output, options)
        if options.action == "rotate-url":
            urls = client.rotate_url(options.session)
            output.outcome(urls.model_dump(mode="json"), urls.online_url)
            return ExitCode.OK
        if options.action == "show":
            status = client.session_status(options.session)
        else:
            status = client.change_state(options.session, _STATE_AFTER[options.action])
    if output.as_json:
        output.document(status.model_dump(mode="json"))
    elif options.action == "show":
        show(status, output)
    else:
        output.line(f"{status.session_id} is {status.status}")
    return ExitCode.OK


def _forget(client: Client, output: Output, options: argparse.Namespace) -> ExitCode:
    report = client.forget(
        options.session,
        rollout_id=options.rollout_id,
        example_id=options.example_id,
        correlation_id=options.correlation_id,
        user=options.user,
        dry_run=options.dry_run,
    )
    if output.as_json:
        output.document(report.model_dump(mode="json"))
        return ExitCode.OK
    output.facts(
        {
            "session": report.session_id,
            "rollouts": str(report.rollouts),
            "calls": str(report.calls),
            "emptied": ", ".join(report.lever_versions),
            "retired": ", ".join(report.retired_candidates),
            "champion": report.champion_candidate_id,
        }
    )
    if report.dry_run:
        say("nothing was removed: this is what would go without --dry-run")
    elif not report.rollouts:
        say(f"the session has no rollout of this {report.subject}")
    return ExitCode.OK


def _list(client: Client, output: Output, *, state: str | None, limit: int) -> ExitCode:
    found: list[JsonObject] = []
    cursor: str | None = None
    while len(found) < limit:
        page = client.sessions(
            state=state, limit=min(limit - len(found), LARGEST_PAGE), cursor=cursor
        )
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if output.as_json:
        output.document({"items": found, "next_cursor": cursor})
        return ExitCode.OK
    if not found:
        say(f"there is no {f'{state} ' if state else ''}session at {client.backend_url}")
        return ExitCode.OK
    output.table(_COLUMNS, [_row(session) for session in found])
    if cursor is not None:
        say(f"there are more than these {len(found)}; a larger --limit shows them")
    return ExitCode.OK


def _row(session: JsonObject) -> tuple[str, ...]:
    # Backends other than ours may tell less.
    return (
        str(session["session_id"]),
        str(session.get("state") or NOTHING),
        str(session.get("rollout_count", NOTHING)),
        str(session.get("reward_count", NOTHING)),
        moment(session.get("updated_at")),
        str(session.get("champion_candidate_id") or NOTHING),
    )


def show(status: SessionStatus, output: Output) -> None:
    """How it stands, then the prompt that it serves."""
    champion = status.candidates.get(status.champion_candidate_id)
    flow, spent = status.reward_flow, status.spending
    reason = f" ({status.stop_reason})" if status.stop_reason else ""
    output.facts(
        {
            "session": status.session_id,
            "state": f"{status.status}{reason}",
            "rollouts": f"{status.rollout_count}, of which {flow.rewarded} rewarded, "
            f"{flow.in_flight} awaited, {flow.missing} given up"
            + (f"; {status.removed_rollout_count} removed" if status.removed_rollout_count else ""),
            "champion": _candidate(status, status.champion_candidate_id),
            "in the lead": _candidate(status, status.best_candidate_id),
            "baseline": _candidate(status, status.baseline_candidate_id),
            "candidates": str(len(status.candidates)),
            "duel": _duel(status),
            "proposals": _proposals(status),
            "tokens": f"{spent.tokens}"
            + ("" if spent.cost_usd is None else f" for {spent.cost_usd:.4f} USD"),
            "epoch": f"{status.epoch}, {status.promotions} promotions",
            "address": _without_secret(status.online_url),
            "updated (UTC)": moment(status.updated_at),
        }
    )
    for warning in status.warnings:
        say(f"warning: {warning}")
    if champion:
        output.passage("the champion's instruction", champion.instruction or "(empty)")


def _candidate(status: SessionStatus, candidate_id: str) -> str:
    report = status.candidates.get(candidate_id)
    if report is None:
        return candidate_id
    low, high = report.interval
    return (
        f"#{report.number} {candidate_id}: {number(report.mean)} "
        f"({number(low)} to {number(high)}) from {report.reward_count} rewards"
    )


def _duel(status: SessionStatus) -> str:
    duel = status.duel
    if duel is None:
        return ""
    return (
        f"{duel.state}: {duel.challenger_id} against {duel.champion_id}, evidence "
        f"{duel.e_value:.2f} of {duel.threshold:.0f} after {duel.observations} rollouts"
    )


def _proposals(status: SessionStatus) -> str:
    proposer = status.proposer
    parts = [f"{proposer.rounds} rounds"]
    if proposer.error:
        parts.append(f"the last one failed: {proposer.error}")
    if proposer.waiting_for:
        parts.append(f"waiting for {proposer.waiting_for}")
    return "; ".join(parts)


def _without_secret(url: str) -> str:
    """The session's proxy, whose path lets anybody in who knows it: `--json` tells it whole."""
    path = urlsplit(url).path
    shown, dot, secret = path.rpartition(".")
    return url.replace(path, f"{shown}.***") if dot and len(secret) >= 32 else url


def _is_sure(options: argparse.Namespace) -> bool:
    if options.yes or getattr(options, "dry_run", False):
        return True
    word, consequence = _FINAL[options.action]
    if not sys.stdin.isatty():
        say(f"{options.action} cannot be undone; add --yes where nobody can be asked")
        return False
    sys.stderr.write(f"{word} {options.session} for good? {consequence} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
