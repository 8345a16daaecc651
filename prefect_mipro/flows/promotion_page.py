"""A promotion in markdown: what a person approves, and what stays on record. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from prefect_mipro.artifacts.differences import difference
from prefect_mipro.artifacts.markdown import cell, fenced, folded, table
from prefect_mipro.models.champions import ChampionVersion, Evidence

NAMELESS = "(the caller's own)"


def headline(version: ChampionVersion) -> str:
    """One sentence, the numbers first: what the prompt earns, and what the baseline does."""
    session, evidence = cell(version.session_id), version.evidence
    if evidence is None:
        return f"Candidate {version.number} of {session}."
    own = f"{_between(evidence.interval)} over {evidence.rewards} rewards"
    if version.number == 1:
        return f"{evidence.mean:.2f}: the baseline of {session} ({own})."
    return (
        f"{evidence.mean:.2f} against {evidence.baseline_mean:.2f}: candidate {version.number} of "
        f"{session} ({own}) and the baseline ({_between(evidence.baseline_interval)})."
    )


def question(version: ChampionVersion, present: ChampionVersion) -> str:
    """What the form of an approval says above its fields."""
    parts = [
        f"## Use candidate {version.number} in place of candidate {present.number}?",
        headline(version),
        *_body(version, present),
        "Without `approve` the candidate is not shown again, and the prompt in use stays.",
    ]
    return "\n\n".join(parts)


def record(version: ChampionVersion, previous: ChampionVersion | None) -> str:
    """The page of a promotion, or of the way back to an earlier version."""
    parts = [
        f"# Prompt of {cell(version.session_id)}: candidate {version.number}",
        headline(version),
        f"In use since {version.promoted_at:%Y-%m-%d %H:%M} UTC, by {cell(version.promoted_by)}"
        + (f": {cell(version.reason, characters=400)}." if version.reason else "."),
        *_body(version, previous),
    ]
    return "\n\n".join(parts)


def _body(version: ChampionVersion, previous: ChampionVersion | None) -> Iterator[str]:
    rows = list(_rows(version, previous))
    if rows:
        yield table(["", "mean reward", "95 % interval", "rewards"], rows)
    if version.evidence is not None and version.evidence.e_value is not None:
        yield (
            f"It won its duel with an e-value of {version.evidence.e_value:g} (needed: "
            f"{version.evidence.threshold:g})."
        )
    yield "### Instruction"
    yield fenced(version.instruction or NAMELESS)
    if previous is not None:
        yield f"### Changed against candidate {previous.number}"
        yield _changes(previous, version)
    if version.lineage:
        origins = [f"{ancestor.number} ({cell(ancestor.origin)})" for ancestor in version.lineage]
        yield f"Made from candidate {', from '.join(origins)}."
    turns = [f"{m.get('role', '')}: {m.get('content', '')}" for m in version.messages]
    if turns:
        yield folded("The whole prompt", "\n\n".join(fenced(turn) for turn in turns))


def _rows(version: ChampionVersion, previous: ChampionVersion | None) -> Iterator[list[str]]:
    evidence = version.evidence
    if evidence is not None:
        yield _row(f"candidate {version.number}", *_own(evidence))
        if previous is not None and previous.number != 1 and previous.evidence is not None:
            yield _row(f"candidate {previous.number}, in use before", *_own(previous.evidence))
        if version.number != 1:
            yield _row(
                "baseline",
                evidence.baseline_mean,
                evidence.baseline_interval,
                evidence.baseline_rewards,
            )


def _own(evidence: Evidence) -> tuple[float, tuple[float, float], int]:
    return evidence.mean, evidence.interval, evidence.rewards


def _row(name: str, mean: float, interval: tuple[float, float], rewards: int) -> list[str]:
    low, high = interval
    return [name, f"{mean:.3f}", f"{low:.3f} to {high:.3f}", str(rewards)]


def _changes(previous: ChampionVersion, version: ChampionVersion) -> str:
    text = difference(previous.instruction or NAMELESS, version.instruction or NAMELESS)
    before, now = len(previous.demonstrations), len(version.demonstrations)
    return text if before == now == 0 else f"{text}\n\n{now} demonstrations, {before} before."


def _between(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
