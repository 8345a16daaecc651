"""The rollouts of a session and their calls: what was asked, answered and rewarded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from prefect_mipro.cli.exits import PROGRAM, say
from prefect_mipro.cli.options import BackendOptions, Count, Flag, Session
from prefect_mipro.cli.output import Column, Output, moment, number

if TYPE_CHECKING:
    from prefect_mipro.models.chat import ChatMessage
    from prefect_mipro.models.rollouts import RolloutReport, Trace

app = App(name="rollouts", help="Show what was asked and answered, the worst first.")
traces = App(name="traces", help="Show the calls of a rollout whole.")

_COLUMNS = (
    Column("reward", right=True),
    Column("candidate", right=True),
    Column("rewarded (UTC)"),
    Column("rollout"),
    Column("feedback", gives=True),
    Column("input", gives=True),
    Column("answer", gives=True),
)


@app.command(name="list")
def list_rollouts(
    session: Session,
    /,
    *,
    worst: Annotated[
        Flag, Parameter(help="The lowest rewards first, of the newest 2,000 rollouts.")
    ] = False,
    limit: Annotated[Count, Parameter(help="At most this many, up to 1,000.")] = 20,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """List the rewarded rollouts of a session, newest first.

    Examples
      prefect-mipro rollouts list support-bot
      prefect-mipro rollouts list support-bot --worst --limit 5
      prefect-mipro rollouts list support-bot --worst --json | jq '.items[].feedback'
    """
    output = backend.output
    with backend.client() as client:
        found = client.rollouts(session, order="worst" if worst else "newest", limit=limit)
    if output.as_json:
        items = [report.model_dump(mode="json") for report in found]
        output.document({"session_id": session, "items": items})
    elif found:
        output.table(_COLUMNS, [_row(report) for report in found])
        say(f"one of them whole: {PROGRAM} traces show {session} {found[0].rollout_id}")
    else:
        say(f"no rollout of {session} has a reward yet")


@traces.command
def show(
    session: Session,
    id_: Annotated[str, Parameter(name="id", help="The id of a rollout, or of one call.")],
    /,
    *,
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Show the calls of a rollout: what was sent to the model, and what it answered.

    Examples
      prefect-mipro traces show support-bot r-17
      prefect-mipro traces show support-bot r-17 --json | jq '.items[].messages'
    """
    output = backend.output
    with backend.client() as client:
        found = client.traces(session, id_)
    if output.as_json:
        items = [trace.model_dump(mode="json") for trace in found]
        output.document({"session_id": session, "items": items})
        return
    for place, trace in enumerate(found, start=1):
        _show(output, trace, f"{place} of {len(found)}")


def _row(report: RolloutReport) -> tuple[str, ...]:
    return (
        number(report.reward),
        f"#{report.candidate_number}",
        moment(report.rewarded_at),
        report.rollout_id,
        report.feedback or "",
        report.input,
        report.output,
    )


def _show(output: Output, trace: Trace, place: str) -> None:
    cost = "" if trace.cost_usd is None else f" for {trace.cost_usd:.6f} USD"
    output.facts(
        {
            "call": f"{trace.trace_id} ({place})",
            "rollout": trace.rollout_id,
            "candidate": trace.candidate_id,
            "prompt": trace.unapplied_reason and f"sent as it came: {trace.unapplied_reason}",
            "at (UTC)": moment(trace.created_at),
            "model": trace.model or "",
            "status": f"{trace.status} {trace.error}".strip(),
            "latency": ""
            if trace.latency_seconds is None
            else f"{trace.latency_seconds:.3f} seconds",
            "tokens": f"{trace.usage.prompt_tokens} in, {trace.usage.completion_tokens} out{cost}",
        }
    )
    for message in trace.messages:
        output.passage(str(message.get("role", "message")), _words(message))
    if not trace.messages:
        output.line("the messages are not kept (trace_content, retention, or a request to forget)")
    output.passage("answer", _answer(trace))


def _answer(trace: Trace) -> str:
    choices = (trace.response or {}).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if isinstance(message, dict):
        return _words(message)
    return trace.output or trace.error or "(none)"


def _words(message: ChatMessage) -> str:
    """The text of a message, and its other parts by name: tool calls, images."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [_part(part) for part in parts if part]
    others = {
        key: value for key, value in message.items() if key not in ("role", "content") and value
    }
    texts += [f"{key}: {_json(value)}" for key, value in others.items()]
    return "\n".join(text for text in texts if text) or "(empty)"


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    if isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type", "part"))
    return "" if kind == "text" else f"({kind})"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
