"""A promotion in markdown: the question for a person, and the record. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prefect_mipro.artifacts.answers import Answers
from prefect_mipro.artifacts.comparison import brief_rows, side_by_side
from prefect_mipro.artifacts.differences import difference
from prefect_mipro.artifacts.markdown import cell, fenced, folded, quoted, table
from prefect_mipro.models.champions import ChampionVersion, Evidence
from prefect_mipro.models.sessions import CandidateReport, SessionStatus
from prefect_mipro.models.summaries import Evaluation

NAMELESS = "(the caller's own)"
FORM_CHARACTERS = 32
PAGE_CHARACTERS = 600


def headline(version: ChampionVersion) -> str:
    """A sentence on the rewards of prompt and baseline, the numbers first."""
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


@dataclass(frozen=True)
class Proposal:
    """A candidate for promotion, the prompt in use, and the evidence on both."""

    version: ChampionVersion
    present: ChampionVersion
    status: SessionStatus
    evaluations: Sequence[Evaluation]
    answers: Answers

    @property
    def title(self) -> str:
        """The question."""
        return f"Use candidate {self.version.number} in place of candidate {self.present.number}?"

    @property
    def before(self) -> CandidateReport:
        """The candidate in use; the baseline if the session does not know the one in use."""
        return self.status.candidates.get(self.present.candidate_id, self.baseline)

    @property
    def after(self) -> CandidateReport:
        """The proposed candidate."""
        return self.status.candidates[self.version.candidate_id]

    @property
    def baseline(self) -> CandidateReport:
        """The candidate that the session began with."""
        return self.status.candidates[self.status.baseline_candidate_id]

    @property
    def heads(self) -> tuple[str, str]:
        """Column headings of the two candidates."""
        known = self.before.candidate_id == self.present.candidate_id
        role = "in use" if known else "baseline"
        return f"candidate {self.before.number}, {role}", f"candidate {self.after.number}"


def question(proposal: Proposal, *, page_url: str) -> str:
    """The text above the form of an approval.

    It is short, because the form must be visible below it: Prefect's dialog has about 340 by 440
    pixels. Everything else is on the page. The dialog of Prefect 3.8 shows neither HTML nor fenced
    text.
    """
    title = f"{proposal.title} [Instructions]({page_url})"
    rows = [
        *brief_rows(
            proposal.before,
            proposal.after,
            baseline=proposal.baseline,
            evaluations=proposal.evaluations,
        ),
        *proposal.answers.cells(characters=FORM_CHARACTERS),
    ]
    return table([title, *proposal.heads], rows)


def question_page(proposal: Proposal) -> str:
    """The page with all details of a proposal.

    The texts are quoted, because Prefect 3.8 shows fenced text light on light, and folds nothing.
    """
    version, present = proposal.version, proposal.present
    columns = list(zip(proposal.heads, (proposal.before, proposal.after), strict=True))
    if proposal.baseline not in (proposal.before, proposal.after):
        columns.insert(0, (f"candidate {proposal.baseline.number}, baseline", proposal.baseline))
    parts = [
        f"# {proposal.title}",
        headline(version),
        side_by_side(columns, proposal.evaluations),
        *_duel(version),
        "### Answers",
        proposal.answers.page(*proposal.heads, characters=PAGE_CHARACTERS),
        f"### Changed against candidate {present.number}",
        _changes(present, version, show=quoted),
        "### The whole prompt",
        *(quoted(turn) for turn in _turns(version)),
        *_lineage(version),
    ]
    return "\n\n".join(parts)


def record(version: ChampionVersion, previous: ChampionVersion | None) -> str:
    """The page of a promotion or a rollback."""
    parts = [
        f"# Prompt of {cell(version.session_id)}: candidate {version.number}",
        headline(version),
        f"In use since {version.promoted_at:%Y-%m-%d %H:%M} UTC, by {cell(version.promoted_by)}"
        + (f": {cell(version.reason, characters=400)}." if version.reason else "."),
        *_evidence(version, previous),
        *_duel(version),
        "### Instruction",
        fenced(version.instruction or NAMELESS),
    ]
    if previous is not None:
        parts += [
            f"### Changed against candidate {previous.number}",
            _changes(previous, version),
        ]
    parts += _lineage(version)
    if turns := [fenced(turn) for turn in _turns(version)]:
        parts.append(folded("The whole prompt", "\n\n".join(turns)))
    return "\n\n".join(parts)


def _evidence(version: ChampionVersion, previous: ChampionVersion | None) -> Iterator[str]:
    rows = list(_rows(version, previous))
    if rows:
        yield table(["", "mean reward", "95 % interval", "rewards"], rows)


def _duel(version: ChampionVersion) -> Iterator[str]:
    evidence = version.evidence
    if evidence is not None and evidence.e_value is not None:
        yield (
            f"It won its duel with an e-value of {evidence.e_value:g} (needed: "
            f"{evidence.threshold:g})."
        )


def _lineage(version: ChampionVersion) -> Iterator[str]:
    if version.lineage:
        origins = [f"{ancestor.number} ({cell(ancestor.origin)})" for ancestor in version.lineage]
        yield f"Made from candidate {', from '.join(origins)}."


def _turns(version: ChampionVersion) -> Iterator[str]:
    return (f"{m.get('role', '')}: {m.get('content', '')}" for m in version.messages)


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


def _changes(
    previous: ChampionVersion, version: ChampionVersion, *, show: Callable[[str], str] = fenced
) -> str:
    text = difference(previous.instruction or NAMELESS, version.instruction or NAMELESS, show=show)
    before, now = len(previous.demonstrations), len(version.demonstrations)
    return text if before == now == 0 else f"{text}\n\n{now} demonstrations, {before} before."


def _between(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
