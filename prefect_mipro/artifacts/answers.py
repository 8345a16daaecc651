"""The answers of two candidates side by side, from rollouts that were recorded. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from prefect_mipro.artifacts.markdown import NO_VALUE, cell, table
from prefect_mipro.models.rollouts import ExampleTrace

ROWS = 3


@dataclass(frozen=True)
class Row:
    """An input, and what each of the two answered to it; `None` where one never saw it."""

    input: str
    before: ExampleTrace | None
    after: ExampleTrace | None

    @property
    def differs(self) -> bool:
        """Whether both answered, and not alike."""
        return bool(self.before and self.after and self.before.output != self.after.output)


@dataclass(frozen=True)
class Answers:
    """Some rows to show, and how many inputs both candidates answered: at all, and alike."""

    rows: tuple[Row, ...] = ()
    shared: int = 0
    alike: int = 0

    @classmethod
    def of(cls, before: Sequence[ExampleTrace], after: Sequence[ExampleTrace]) -> Answers:
        """Of traces that are sorted from the newest.

        Rows with two different answers come first, then those with two equal ones, then those that
        one of the two answered, in turns.
        """
        earlier, later = _by_input(before), _by_input(after)
        shared = [
            Row(later[key].input, earlier[key], later[key]) for key in later if key in earlier
        ]
        different = [row for row in shared if row.differs]
        equal = [row for row in shared if not row.differs]
        alone = chain.from_iterable(
            zip_longest(
                (Row(t.input, None, t) for key, t in later.items() if key not in earlier),
                (Row(t.input, t, None) for key, t in earlier.items() if key not in later),
            )
        )
        rows = [*different, *equal, *filter(None, alone)]
        return cls(tuple(rows[:ROWS]), len(shared), len(equal))

    def cells(self, *, characters: int) -> Iterator[list[str]]:
        """A table's cells of each row, all texts cut: the input and both answers with rewards."""
        for row in self.rows:
            yield [
                cell(row.input, characters=characters),
                _answer(row.before, characters),
                _answer(row.after, characters),
            ]

    def page(self, before: str, after: str, *, characters: int) -> str:
        """The rows with a sentence on where they are from; the arguments are the columns' heads."""
        if not self.rows:
            return "There are no answers to show."
        if self.shared:
            origin = (
                f"Of their newest rollouts, the two share {self.shared} inputs; their answers to "
                f"{self.alike} of them are the same."
            )
        else:
            origin = "The two have answered no input in common lately."
        rows = table(["input", before, after], list(self.cells(characters=characters)))
        return f"{origin} In brackets the reward, from 0 to 1.\n\n{rows}"


def _by_input(traces: Sequence[ExampleTrace]) -> dict[str, ExampleTrace]:
    """The newest trace of each example, or of each input where examples have no id."""
    found: dict[str, ExampleTrace] = {}
    for trace in traces:
        found.setdefault(trace.example_id or trace.input, trace)
    return found


def _answer(trace: ExampleTrace | None, characters: int) -> str:
    return (
        NO_VALUE
        if trace is None
        else f"{cell(trace.output, characters=characters)} ({trace.reward:.2f})"
    )
