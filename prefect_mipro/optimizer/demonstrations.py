"""Demonstrations: which recorded calls may serve as worked examples, and in which sets."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from prefect_mipro.config import DemonstrationSettings
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationSource,
    DemonstrationsValue,
)
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.prompts import normalised

TEMPLATE_VERSION = "sets-3"

# An answer is worth showing when it is among the best of those seen.
GOOD_QUANTILE = 0.8
# An example's own mean counts as if so many rewards of the overall mean came with it.
PSEUDO_REWARDS = 2.0
# Refusals that it takes to believe in a limit.
FEWEST_REFUSALS = 2
# Tokens are not equally long: of a limit in characters this share is used.
CONTEXT_SHARE = 0.9
# Draws per wanted set before the pool counts as used up.
ATTEMPTS = 20
# No user, correlation id or example fills more than this share of a set.
MOST_OF_ONE_SOURCE = 0.25
# Unmarked texts need this many sources: what a single source rewarded is no evidence.
FEWEST_SOURCES = 2
# The source of all unmarked calls that name none, where others do.
UNKNOWN = "unknown"
# Outputs are labels when each occurs at least so often on average.
FEWEST_PER_LABEL = 2


@dataclass(frozen=True)
class WorkedExample:
    """A demonstration, and how much better its answer was than its example's usually are.

    `surprise` is in units of the scaled reward: near 1 for the one success of a hard example, near
    0 for an easy one, negative where only the expected answer is right. `sources` are those of
    which no set may hold too much: the user, the correlation id, the example.
    """

    demonstration: Demonstration
    surprise: float = 0.0
    sources: frozenset[str] = frozenset()

    @cached_property
    def key(self) -> str:
        """What makes two of them the same."""
        return normalised(self.demonstration.input)

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of its input."""
        return frozenset(self.key.split())

    @property
    def turns(self) -> tuple[str, str]:
        """Its input and its output."""
        return self.demonstration.input, self.demonstration.output

    @property
    def characters(self) -> int:
        """Its length."""
        return sum(map(len, self.turns))

    def reviewed(self) -> WorkedExample:
        """The same example, approved by a person."""
        source = DemonstrationSource.REVIEWED
        return replace(self, demonstration=self.demonstration.model_copy(update={"source": source}))


class SetKind(StrEnum):
    """By what the members of a set were picked: chance, variety, or hard examples solved."""

    RANDOM = "random"
    DIVERSE = "diverse"
    HARD = "hard"


@dataclass(frozen=True)
class ProposedSet:
    """A set and how it was picked."""

    kind: SetKind
    value: DemonstrationsValue


def worked_examples(
    traces: Sequence[ExampleTrace],
    *,
    threshold: float,
    max_characters: int,
    own_correlation_id: str | None = None,
) -> tuple[WorkedExample, ...]:
    """The pool of worked examples in the traces, which come newest first.

    Of equal inputs the newest stays. An expected answer teaches better than a recorded one, so it
    is the output where it is known; else the recorded answer serves if its reward reached
    `threshold` and is among the best fifth of those seen (bootstrapping, MIPRO, arXiv 2406.11695,
    section 3.1). `own_correlation_id` is the session's: it tells no caller from another.
    """
    sources = _sources(traces, own_correlation_id)
    bar = max(threshold, _quantile([trace.reward for trace in traces]))
    usual = _usual_rewards(traces)
    best: dict[str, float] = {}
    for trace in traces:
        asked = normalised(trace.input)
        best[asked] = max(trace.reward, best.get(asked, 0.0))
    pool: dict[str, WorkedExample] = {}
    for trace in traces:
        output = trace.expected or (trace.output if trace.reward >= bar else "")
        asked = normalised(trace.input)
        too_long = len(trace.input) + len(output) > max_characters
        if not asked or not output.strip() or too_long:
            continue
        demonstration = Demonstration(
            input=trace.input,
            output=output,
            trace_id=trace.trace_id,
            rollout_id=trace.rollout_id,
            example_id=trace.example_id,
            source=DemonstrationSource.MARKED if trace.shareable else DemonstrationSource.TRAFFIC,
        )
        surprise = best[asked] - usual[_identity(trace)]
        pool.setdefault(asked, WorkedExample(demonstration, surprise, sources(trace)))
    return tuple(pool.values())


def propose_sets(
    pool: Sequence[WorkedExample],
    *,
    existing: Sequence[DemonstrationsValue],
    count: int,
    settings: DemonstrationSettings,
    rng: np.random.Generator,
) -> list[ProposedSet]:
    """At most `count` new sets of the settings' sizes: by turns random, diverse and hard ones.

    Where outputs repeat they are labels: every label gets the same number of turns, never bunched
    together, and sizes grow to a multiple of the number of labels, unless there are more labels
    than turns in the largest set. A set with the members of an existing one is not made again. The
    pool's whole is the only set while it is smaller than every size. No set is longer than the
    settings allow: what does not fit any more is left out, and so is what would give one source
    more than its share. A set with unmarked texts has at least two sources of them.
    """
    if not pool:
        return []
    groups = _groups(pool)
    step = len(groups) if len(groups) <= max(settings.sizes) else 1
    whole = [math.ceil(size / step) * step for size in settings.sizes]
    sizes = [size for size in whole if size <= len(pool)] or [len(pool)]
    seen = {_members(value) for value in existing}
    seen.add(frozenset())
    kinds = list(SetKind)
    made: list[ProposedSet] = []
    for turn in range(ATTEMPTS * count):
        if len(made) == count:
            break
        kind = kinds[(len(existing) + turn) % len(kinds)]
        value = DemonstrationsValue(
            demonstrations=_interleaved(
                groups,
                int(rng.choice(sizes)),
                pick=_PICKS[kind],
                max_characters=settings.max_set_characters,
                rng=rng,
            )
        )
        if _members(value) not in seen:
            seen.add(_members(value))
            made.append(ProposedSet(kind, value))
    return made


def room_for_demonstrations(sent: int, *, added: int, fits: float | None) -> int | None:
    """How many characters of demonstrations would have fit into a prompt that was too long.

    Of `sent` characters the candidate `added` some. `fits` is the share of the prompt that the
    model takes, where it told; else half of what was added is a guess. `None` if the caller's own
    messages are too long.
    """
    if added <= 0:
        return None
    if fits is None:
        return added // 2
    room = int(CONTEXT_SHARE * fits * sent) - (sent - added)
    return min(room, added) if room > 0 else None


def known_room(candidates: Sequence[Candidate]) -> int | None:
    """How many characters of demonstrations fit, by the refusals of retired candidates.

    One refusal may be the fault of an unusual input. `None` while nothing tells a limit.
    """
    rooms = (
        candidate.demonstration_room
        for candidate in candidates
        if not candidate.active and candidate.statistics.failures >= FEWEST_REFUSALS
    )
    return min((room for room in rooms if room is not None), default=None)


def set_id(value: DemonstrationsValue) -> str:
    """The name of a set by its content: another turn, or another order, is another set."""
    turns = [[shown.input, shown.output] for shown in value.demonstrations]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:12]


Pick = Callable[[Sequence[WorkedExample], Sequence[WorkedExample]], int]


def _quantile(rewards: Sequence[float]) -> float:
    return float(np.quantile(rewards, GOOD_QUANTILE, method="lower")) if rewards else 0.0


def _usual_rewards(traces: Sequence[ExampleTrace]) -> dict[str, float]:
    """Each example's mean reward, drawn to the overall mean where it was seen seldom."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for trace in traces:
        rewards[_identity(trace)].append(trace.reward)
    overall = sum(trace.reward for trace in traces) / max(1, len(traces))
    return {
        example: (sum(seen) + PSEUDO_REWARDS * overall) / (len(seen) + PSEUDO_REWARDS)
        for example, seen in rewards.items()
    }


def _identity(trace: ExampleTrace) -> str:
    """The caller's id of the example; without one, its input."""
    return trace.example_id or normalised(trace.input)


def _groups(pool: Sequence[WorkedExample]) -> list[list[WorkedExample]]:
    """By output where outputs are labels, else all in one."""
    groups: dict[str, list[WorkedExample]] = defaultdict(list)
    for example in pool:
        groups[normalised(example.demonstration.output)].append(example)
    labelled = len(pool) >= FEWEST_PER_LABEL * len(groups)
    return list(groups.values()) if labelled else [list(pool)]


def _interleaved(
    groups: Sequence[Sequence[WorkedExample]],
    size: int,
    *,
    pick: Pick,
    max_characters: int,
    rng: np.random.Generator,
) -> tuple[Demonstration, ...]:
    """One of each group in random order, again and again, until there are enough or none fits."""
    left = [[group[k] for k in rng.permutation(len(group))] for group in groups]
    chosen: list[WorkedExample] = []
    room = max_characters
    while len(chosen) < size and any(left):
        for k in rng.permutation(len(left)):
            left[k] = [example for example in left[k] if example.characters <= room]
            if left[k] and len(chosen) < size:
                chosen.append(left[k].pop(pick(left[k], chosen)))
                room -= chosen[-1].characters
    fair = _fair(chosen)
    return tuple(example.demonstration for example in fair) if _is_evidence(fair) else ()


def _fair(chosen: Sequence[WorkedExample]) -> list[WorkedExample]:
    """Without those that give a source more than its share of what is left; the first stay."""
    left = list(chosen)
    while True:
        most = max(1, int(MOST_OF_ONE_SOURCE * len(left)))
        counts: Counter[str] = Counter()
        kept = []
        for example in left:
            if all(counts[source] < most for source in example.sources):
                counts.update(example.sources)
                kept.append(example)
        if len(kept) == len(left):
            return kept
        left = kept


def _is_evidence(chosen: Sequence[WorkedExample]) -> bool:
    """Whether the unmarked ones, if there are any, come from more than one source."""
    unmarked = [
        example for example in chosen if example.demonstration.source is DemonstrationSource.TRAFFIC
    ]
    if not unmarked:
        return True
    shared = frozenset.intersection(*(example.sources for example in unmarked))
    return len(unmarked) >= FEWEST_SOURCES and not shared


def _sources(
    traces: Sequence[ExampleTrace], own_correlation_id: str | None
) -> Callable[[ExampleTrace], frozenset[str]]:
    """Whose each trace is.

    Where no unmarked trace names a user or a correlation id, each counts as a source of its own.
    Where some do, those that do not count as one: to name none must not be a way around the rule.
    Marked ones are vouched for. They are told apart by their sources where these are enough to fill
    a set, and else by their examples alone.
    """

    def callers(trace: ExampleTrace) -> set[str]:
        correlation = trace.correlation_id
        own = correlation in (None, own_correlation_id)
        return {
            *([f"user {trace.user}"] if trace.user else []),
            *([] if own else [f"correlation id {correlation}"]),
        }

    def example(trace: ExampleTrace) -> set[str]:
        return {f"example {trace.example_id}"} if trace.example_id else set()

    named = [callers(trace) for trace in traces if not trace.shareable]
    some_named = any(named)
    marked = {frozenset(callers(trace)) for trace in traces if trace.shareable}
    enough = len(marked) * MOST_OF_ONE_SOURCE >= 1

    def of(trace: ExampleTrace) -> frozenset[str]:
        if trace.shareable:
            return frozenset(example(trace) | (callers(trace) if enough else set()))
        unnamed = {UNKNOWN} if some_named else set()
        return frozenset(example(trace) | (callers(trace) or unnamed))

    return of


def _first(group: Sequence[WorkedExample], chosen: Sequence[WorkedExample]) -> int:
    return 0


def _most_different(group: Sequence[WorkedExample], chosen: Sequence[WorkedExample]) -> int:
    """The one whose input shares the fewest words with the most similar of those chosen."""
    overlap = [
        max((_overlap(example.words, other.words) for other in chosen), default=0.0)
        for example in group
    ]
    return int(np.argmin(overlap))


def _most_surprising(group: Sequence[WorkedExample], chosen: Sequence[WorkedExample]) -> int:
    """The one that was solved although it seldom is."""
    return int(np.argmax([example.surprise for example in group]))


def _overlap(words: frozenset[str], others: frozenset[str]) -> float:
    return len(words & others) / max(1, len(words | others))


def _members(value: DemonstrationsValue) -> frozenset[str]:
    return frozenset(normalised(demonstration.input) for demonstration in value.demonstrations)


_PICKS: dict[SetKind, Pick] = {
    SetKind.RANDOM: _first,
    SetKind.DIVERSE: _most_different,
    SetKind.HARD: _most_surprising,
}
