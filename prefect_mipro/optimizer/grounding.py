"""What recorded calls say about the task, found without asking a model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.prompts import normalised

MOST_LABELS = 24
FEWEST_PER_LABEL = 2

# A remark that so many different inputs drew is about the task, not about one of its users.
COMMON_REMARK_INPUTS = 3
REMARK_CHARACTERS = 100

_LABEL = re.compile(r"\w(?:[\w /&'+.-]{0,38}\w)?")


@dataclass(frozen=True)
class Remark:
    """A short feedback on poor answers. `trace_ids` names one call for each input that drew it."""

    text: str
    trace_ids: tuple[str, ...]


@dataclass(frozen=True)
class Grounding:
    """A summary of the task's traffic.

    `inputs` counts the different ones, `characters` is the length of the shortest and of the
    longest. `labels` are the answers of a task that has few short ones, sorted, each with its
    share; none for another task. `remarks` come most frequent first.
    """

    inputs: int = 0
    characters: tuple[int, int] = (0, 0)
    labels: tuple[tuple[str, float], ...] = ()
    remarks: tuple[Remark, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels without their shares."""
        return tuple(name for name, _ in self.labels)

    @classmethod
    def of(
        cls, traces: Sequence[ExampleTrace], *, threshold: float, quotable: bool = True
    ) -> Grounding:
        """From recorded calls, of which those rewarded below `threshold` went badly.

        Answers and remarks are taken over word by word. Unless all are `quotable`, only marked
        calls give any; the right answers that a program tells are its own words in any case.
        """
        lengths = {normalised(trace.input): len(trace.input) for trace in traces}
        return cls(
            inputs=len(lengths),
            characters=(min(lengths.values()), max(lengths.values())) if lengths else (0, 0),
            labels=_labels(traces, threshold, quotable=quotable),
            remarks=_remarks([t for t in traces if quotable or t.shareable], threshold),
        )


def _labels(
    traces: Sequence[ExampleTrace], threshold: float, *, quotable: bool
) -> tuple[tuple[str, float], ...]:
    """Expected answers count where there are any, else those rewarded with the threshold or more.

    An answer that was given only once is no label, unless it was expected.
    """
    expected = [trace.expected for trace in traces if trace.expected]
    answers = expected or [
        trace.output
        for trace in traces
        if trace.reward >= threshold and (quotable or trace.shareable)
    ]
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in map(str.strip, answers):
        spellings[normalised(answer)][answer] += 1
    if len(answers) < FEWEST_PER_LABEL * len(spellings):
        return ()
    fewest = 1 if expected else FEWEST_PER_LABEL
    common = [counts for counts in spellings.values() if counts.total() >= fewest]
    if not 2 <= len(common) <= MOST_LABELS:
        return ()
    total = sum(counts.total() for counts in common)
    labels = sorted((counts.most_common(1)[0][0], counts.total() / total) for counts in common)
    return tuple(labels) if all(_LABEL.fullmatch(name) for name, _ in labels) else ()


def _remarks(traces: Sequence[ExampleTrace], threshold: float) -> tuple[Remark, ...]:
    texts: dict[str, str] = {}
    calls: dict[str, dict[str, str]] = defaultdict(dict)
    for trace in traces:
        text = (trace.feedback or "").strip()
        if trace.reward < threshold and 0 < len(text) <= REMARK_CHARACTERS:
            texts.setdefault(normalised(text), text)
            calls[normalised(text)].setdefault(normalised(trace.input), trace.trace_id)
    common = [
        Remark(texts[key], tuple(inputs.values()))
        for key, inputs in calls.items()
        if len(inputs) >= COMMON_REMARK_INPUTS
    ]
    return tuple(sorted(common, key=lambda remark: (-len(remark.trace_ids), remark.text)))
