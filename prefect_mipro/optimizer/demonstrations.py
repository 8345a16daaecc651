"""Demonstrations: which recorded calls may serve as worked examples, and in which sets."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from prefect_mipro.config import DemonstrationSettings
from prefect_mipro.models.levers import Demonstration, DemonstrationsValue
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.prompts import normalised

# Draws per wanted set before the pool counts as used up.
ATTEMPTS = 20
# Outputs are labels when each occurs at least so often on average.
FEWEST_PER_LABEL = 2


def examples(
    traces: Sequence[ExampleTrace],
    *,
    threshold: float,
    max_characters: int,
    held_out: Callable[[str | None], bool],
) -> tuple[Demonstration, ...]:
    """The pool of demonstrations in the traces, which come newest first.

    Of equal inputs the newest stays. An expected answer teaches better than a recorded one, so it
    is the output where it is known; else the recorded answer serves if its reward reached
    `threshold` (bootstrapping, MIPRO, arXiv 2406.11695, section 3.1). Examples for which `held_out`
    is true are never shown, so that what they measure stays honest.
    """
    pool: dict[str, Demonstration] = {}
    for trace in traces:
        output = trace.expected or (trace.output if trace.reward >= threshold else "")
        asked = normalised(trace.input)
        too_long = len(trace.input) + len(output) > max_characters
        if not asked or not output.strip() or too_long or held_out(trace.example_id):
            continue
        demonstration = Demonstration(
            input=trace.input,
            output=output,
            trace_id=trace.trace_id,
            example_id=trace.example_id,
        )
        pool.setdefault(asked, demonstration)
    return tuple(pool.values())


def propose_sets(
    pool: Sequence[Demonstration],
    *,
    existing: Sequence[DemonstrationsValue],
    count: int,
    settings: DemonstrationSettings,
    rng: np.random.Generator,
) -> list[DemonstrationsValue]:
    """At most `count` new sets of the settings' sizes, by turns random and diverse.

    Where outputs repeat they are labels: every label gets the same number of turns, never bunched
    together, and sizes grow to a multiple of the number of labels, unless there are more labels
    than turns in the largest set. A set with the members of an existing one is not made again. The
    pool's whole is the only set while it is smaller than every size.
    """
    if not pool:
        return []
    groups = _groups(pool)
    step = len(groups) if len(groups) <= max(settings.sizes) else 1
    whole = [math.ceil(size / step) * step for size in settings.sizes]
    sizes = [size for size in whole if size <= len(pool)] or [len(pool)]
    seen = {_members(value.demonstrations) for value in existing}
    made: list[DemonstrationsValue] = []
    for _ in range(ATTEMPTS * count):
        if len(made) == count:
            break
        size = int(rng.choice(sizes))
        pick = _most_different if len(made) % 2 else _first
        chosen = tuple(_interleaved(groups, size, pick, rng))
        if _members(chosen) not in seen:
            seen.add(_members(chosen))
            made.append(DemonstrationsValue(demonstrations=chosen))
    return made


Pick = Callable[[Sequence[Demonstration], Sequence[Demonstration]], int]


def _groups(pool: Sequence[Demonstration]) -> list[list[Demonstration]]:
    """By output where outputs are labels, else all in one."""
    groups: dict[str, list[Demonstration]] = defaultdict(list)
    for demonstration in pool:
        groups[normalised(demonstration.output)].append(demonstration)
    labelled = len(pool) >= FEWEST_PER_LABEL * len(groups)
    return list(groups.values()) if labelled else [list(pool)]


def _interleaved(
    groups: Sequence[Sequence[Demonstration]], size: int, pick: Pick, rng: np.random.Generator
) -> list[Demonstration]:
    """One of each group in random order, again and again, until there are enough."""
    left = [[group[k] for k in rng.permutation(len(group))] for group in groups]
    chosen: list[Demonstration] = []
    while len(chosen) < size and any(left):
        for k in rng.permutation(len(left)):
            if left[k] and len(chosen) < size:
                chosen.append(left[k].pop(pick(left[k], chosen)))
    return chosen


def _first(group: Sequence[Demonstration], chosen: Sequence[Demonstration]) -> int:
    return 0


def _most_different(group: Sequence[Demonstration], chosen: Sequence[Demonstration]) -> int:
    """The one whose input shares the fewest words with the most similar of those chosen."""
    taken = [set(normalised(demonstration.input).split()) for demonstration in chosen]
    overlap = [
        max((_overlap(words, others) for others in taken), default=0.0)
        for words in (set(normalised(demonstration.input).split()) for demonstration in group)
    ]
    return int(np.argmin(overlap))


def _overlap(words: set[str], others: set[str]) -> float:
    return len(words & others) / max(1, len(words | others))


def _members(demonstrations: Sequence[Demonstration]) -> frozenset[str]:
    return frozenset(normalised(demonstration.input) for demonstration in demonstrations)
