"""The commands for sessions: list, show, steer, export, import, delete, forget."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import App, ArgumentCollection, Group, Parameter

from prefect_mipro.cli.exits import ExitCode, say
from prefect_mipro.cli.options import BackendOptions, Count, Flag, Session, Sure, Text
from prefect_mipro.cli.output import NOTHING, Column, Output, moment, number

if TYPE_CHECKING:
    from prefect_mipro.models.base import JsonObject
    from prefect_mipro.models.sessions import SessionStatus

app = App(name="sessions", help="Look after the sessions of a backend.")

_COLUMNS = (
    Column("session"),
    Column("state"),
    Column("rollouts", right=True),
    Column("rewards", right=True),
    Column("updated (UTC)"),
    Column("champion", gives=True),
)


def _exactly_one(arguments: ArgumentCollection) -> None:
    if sum(argument.has_tokens for argument in arguments) != 1:
        names = ", ".join(argument.name for argument in arguments)
        raise ValueError(f"Give exactly one of {names}.")


_SUBJECT = Group("Whose data", sort_key=1, validator=_exactly_one)


@app.command(name="list")
def list_sessions(
    *,
    state: Literal["running", "paused", "cancelled", "succeeded"] | None = None,
    limit: Count = 50,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """List the sessions, newest first.

    Examples
      prefect-mipro sessions list
      prefect-mipro sessions list --state running --limit 10
      prefect-mipro sessions list --json | jq -r '.items[].session_id'

    Args:
        state: Only sessions in this state.
        limit: At most this many.
    """
    from prefect_mipro.client.operations import LARGEST_PAGE

    found: list[JsonObject] = []
    cursor: str | None = None
    with backend.client() as client:
        while len(found) < limit:
            page = client.sessions(
                state=state, limit=min(limit - len(found), LARGEST_PAGE), cursor=cursor
            )
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    if backend.as_json:
        backend.output.document({"items": found, "next_cursor": cursor})
    elif found:
        backend.output.table(_COLUMNS, [_row(session) for session in found])
        if cursor is not None:
            say(f"there are more than these {len(found)}; a larger --limit shows them")
    else:
        say(f"there is no {f'{state} ' if state else ''}session at {client.backend_url}")


@app.command
def show(session: Session, /, *, backend: BackendOptions = BackendOptions()) -> None:
    """Show the state of a session and the prompt that it serves.

    Examples
      prefect-mipro sessions show support-bot
      prefect-mipro sessions show support-bot --json | jq .champion_candidate_id
    """
    with backend.client() as client:
        status = client.session_status(session)
    if backend.as_json:
        backend.output.document(status.model_dump(mode="json"))
    else:
        _show(status, backend.output)


@app.command
def pause(session: Session, /, *, backend: BackendOptions = BackendOptions()) -> None:
    """Stop exploring for now.

    A paused session serves its champion and explores no more; rewards still
    count.

    Examples
      prefect-mipro sessions pause support-bot
    """
    _change_state(session, "paused", backend)


@app.command
def resume(session: Session, /, *, backend: BackendOptions = BackendOptions()) -> None:
    """Explore again.

    Examples
      prefect-mipro sessions resume support-bot
    """
    _change_state(session, "running", backend)


@app.command
def cancel(
    session: Session, /, *, yes: Sure = False, backend: BackendOptions = BackendOptions()
) -> ExitCode:
    """Stop for good.

    A cancelled session serves its champion for good; it takes no more rewards
    and cannot be resumed.

    Examples
      prefect-mipro sessions cancel support-bot
      prefect-mipro sessions cancel support-bot --yes
    """
    if not (yes or _is_sure("Cancel", session, "It cannot be resumed.")):
        return ExitCode.USAGE
    _change_state(session, "cancelled", backend)
    return ExitCode.OK


@app.command
def delete(
    session: Session, /, *, yes: Sure = False, backend: BackendOptions = BackendOptions()
) -> ExitCode:
    """Remove a session and all that is known of it.

    Its prompts, candidates, rollouts, rewards, traces and events are removed,
    whatever its state. Its id is free again. Export it first if you may want it
    back.

    Examples
      prefect-mipro sessions delete support-bot
      prefect-mipro sessions delete support-bot --yes
    """
    if not (yes or _is_sure("Delete", session, "Its prompts, rewards and traces go with it.")):
        return ExitCode.USAGE
    with backend.client() as client:
        deleted = client.delete_session(session)
    backend.output.outcome(deleted.model_dump(mode="json"), f"{deleted.session_id} is deleted")
    return ExitCode.OK


@app.command
def forget(
    session: Session,
    /,
    *,
    user: Annotated[Text | None, Parameter(group=_SUBJECT)] = None,
    rollout: Annotated[Text | None, Parameter(group=_SUBJECT)] = None,
    example: Annotated[Text | None, Parameter(group=_SUBJECT)] = None,
    correlation_id: Annotated[Text | None, Parameter(group=_SUBJECT)] = None,
    dry_run: Flag = False,
    yes: Sure = False,
    backend: BackendOptions = BackendOptions(),
) -> ExitCode:
    """Remove the data of one user, rollout, example or conversation.

    The rollouts, calls, rewards and events are removed. Prompts that show one of
    these texts are emptied, and their candidates retired; counters stay. Exports
    and backups are not reached.

    Examples
      prefect-mipro sessions forget support-bot --user u-203 --dry-run
      prefect-mipro sessions forget support-bot --user u-203
      prefect-mipro sessions forget support-bot --rollout r-17 --yes

    Args:
        user: The "user" of the rewards' metadata.
        rollout: The id of a rollout.
        example: The id of an example of a data set.
        correlation_id: The id of a conversation.
        dry_run: Only say what would be removed.
    """
    consequence = "Candidates that show it are retired; --dry-run says which."
    if not (yes or dry_run or _is_sure("Forget this data of", session, consequence)):
        return ExitCode.USAGE
    with backend.client() as client:
        report = client.forget(
            session,
            user=user,
            rollout_id=rollout,
            example_id=example,
            correlation_id=correlation_id,
            dry_run=dry_run,
        )
    if backend.as_json:
        backend.output.document(report.model_dump(mode="json"))
        return ExitCode.OK
    backend.output.facts(
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


@app.command
def rotate_url(session: Session, /, *, backend: BackendOptions = BackendOptions()) -> None:
    """Give the proxy URL of a session a new secret.

    For a URL that has leaked. Programs that call through it are refused from now
    on: give them the new one, which is printed. Programs that call by the
    session's id and a key are not affected.

    Examples
      prefect-mipro sessions rotate-url support-bot
    """
    with backend.client() as client:
        urls = client.rotate_url(session)
    backend.output.outcome(urls.model_dump(mode="json"), urls.online_url)


@app.command
def export(
    session: Session,
    /,
    *,
    output: Annotated[Text | None, Parameter(name=("--output", "-o"))] = None,
    no_traces: Flag = False,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Export all that is known of a session, as JSON lines.

    The session, its lever versions, candidates, duels, rollouts, rewards, traces
    and events, and last the counts of them all. The key "part" says what a line
    is. It holds no secret.

    Examples
      prefect-mipro sessions export support-bot -o support-bot.jsonl.gz
      prefect-mipro sessions export support-bot | grep '"part":"reward"'
      prefect-mipro sessions export support-bot --no-traces -o numbers.jsonl

    Args:
        output: The file to write; compressed when it ends in .gz (default: stdout).
        no_traces: Leave out what was asked and answered.
    """
    from prefect_mipro.cli import exports

    with backend.client() as client:
        exports.run(client, backend.output, session, output, traces=not no_traces)


@app.command(name="import")
def import_session(file: Text, /, *, backend: BackendOptions = BackendOptions()) -> None:
    """Import an export into this backend.

    The session keeps its id, its candidates and all that it has learned. It is
    paused until you resume it; a session that is there already is left alone. An
    import that was broken off begins again from the start.

    Examples
      prefect-mipro sessions import bot.jsonl.gz --backend-url https://new.example.com
      prefect-mipro sessions export bot | prefect-mipro sessions import - --embedded

    Args:
        file: An export, or - for standard input.
    """
    from prefect_mipro.cli import imports

    with backend.client() as client:
        imports.run(client, backend.output, file)


def _change_state(
    session: str, state: Literal["paused", "running", "cancelled"], backend: BackendOptions
) -> None:
    from prefect_mipro.models.sessions import SessionState

    with backend.client() as client:
        status = client.change_state(session, SessionState(state))
    backend.output.outcome(
        status.model_dump(mode="json"), f"{status.session_id} is {status.status}"
    )


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


def _show(status: SessionStatus, output: Output) -> None:
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


def _is_sure(action: str, session: str, consequence: str) -> bool:
    if not sys.stdin.isatty():
        say("this cannot be undone; add --yes where nobody can be asked")
        return False
    sys.stderr.write(f"{action} {session} for good? {consequence} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
