"""Instructions made without a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefect_mipro.optimizer.grounding import Grounding
from prefect_mipro.optimizer.lint import Lint

TEMPLATE_VERSION = "rewrite-2"

_ONLY_THE_ANSWER = "Write only the answer and nothing else."
_STEP_BY_STEP = "Think step by step, then write the final answer on the last line."
_SENTENCE = re.compile(r"(.+?(?:[.!?](?=\s)|$))(\s*)", re.MULTILINE)


@dataclass(frozen=True)
class Rewrite:
    """An instruction and the operator that made it, from which recorded calls."""

    operator: str
    text: str
    trace_ids: tuple[str, ...] = ()


def rewrites(
    parent: str,
    *,
    grounding: Grounding,
    lint: Lint,
    others: Sequence[str] = (),
    rng: np.random.Generator,
) -> list[Rewrite]:
    """All that pass `lint` beside `others` and each other, the most promising first.

    Those with the labels come first, in random order: small models gain most from the list of
    allowed answers and from being told to write nothing else, and as proposers they are weak
    (Zhang et al., arXiv 2405.10276). Then the mistake that was remarked upon most, then the others.
    """
    taken = list(others)
    made: list[Rewrite] = []
    for group in (
        _naming(grounding.label_names, parent, lint.baseline),
        _checking(grounding, parent),
        _alone(grounding.label_names, parent, rng),
    ):
        for k in rng.permutation(len(group)):
            if not lint.fault(group[k].text, others=taken):
                taken.append(group[k].text)
                made.append(group[k])
    return made


def _naming(labels: Sequence[str], parent: str, baseline: str) -> list[Rewrite]:
    listed = ", ".join(labels)
    if not labels or (parent != baseline and listed in parent):
        return []
    first = f"Possible answers: {listed}."
    choice = f"Which of these fits the message best: {listed}?"
    return [
        Rewrite("list_answers", _joined(parent, f"Answer with exactly one of: {listed}.")),
        Rewrite("only_listed", _joined(parent, f"Write one of these and nothing else: {listed}.")),
        Rewrite("answers_first", _joined(first, parent, _ONLY_THE_ANSWER)),
        Rewrite("plain_choice", f"{choice} {_ONLY_THE_ANSWER}"),
    ]


def _checking(grounding: Grounding, parent: str) -> list[Rewrite]:
    """A line for the most frequent remark that the parent does not take up already."""
    for remark in grounding.remarks:
        line = f"Check your answer first. A mistake to avoid: {remark.text.rstrip('.')}."
        if line not in parent:
            return [Rewrite("checklist", _joined(parent, line), remark.trace_ids)]
    return []


def _alone(labels: Sequence[str], parent: str, rng: np.random.Generator) -> list[Rewrite]:
    made = [Rewrite("drop_sentence", _without_a_sentence(parent, rng))]
    # The two contradict each other.
    if _ONLY_THE_ANSWER not in parent and _STEP_BY_STEP not in parent:
        made.append(Rewrite("only_the_answer", _joined(parent, _ONLY_THE_ANSWER)))
        if not labels:
            made.append(Rewrite("step_by_step", _joined(parent, _STEP_BY_STEP)))
    return made


def _joined(*parts: str) -> str:
    return "\n\n".join(filter(None, map(str.strip, parts)))


def _without_a_sentence(text: str, rng: np.random.Generator) -> str:
    """The lines stay as they are otherwise."""
    pieces = [[*found.groups()] for found in _SENTENCE.finditer(text.strip())]
    if not pieces:
        return ""
    k = rng.integers(len(pieces))
    if k:
        pieces[k - 1][1] = max(pieces[k - 1][1], pieces[k][1], key=lambda gap: gap.count("\n"))
    del pieces[k]
    return "".join(sentence + gap for sentence, gap in pieces).strip()
