"""The tasks that both optimizers work on: name the label of a short text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BUNDLED = Path(__file__).parent.parent / "flows" / "data" / "everyday_intents.jsonl"


@dataclass(frozen=True)
class Row:
    """A text and its right label. `row_id` is its place in its file."""

    row_id: str
    text: str
    label: str


@dataclass(frozen=True)
class Task:
    """One task: what is to be learned on, what is never seen before the end, and the first prompt.

    `field` is what the label is called. `demonstration_sizes` are two or three, or eight and
    sixteen where there are two labels only, for each label.
    """

    name: str
    field: str
    instruction: str
    demonstration_sizes: tuple[int, ...]
    learning: tuple[Row, ...]
    held_out: tuple[Row, ...]

    @property
    def labels(self) -> frozenset[str]:
        """All labels of the task."""
        return frozenset(row.label for row in self.learning)

    def read(self, answer: str) -> str:
        """The label that stands first in the answer; empty when none does."""
        words = re.findall(r"\w+", answer.lower())
        return next((word for word in words if word in self.labels), "")

    def reward(self, row_label: str, answer: str) -> float:
        """1 for the right label, else 0."""
        return float(self.read(answer) == row_label)

    def sample(self, seed: int, *, count: int) -> list[Row]:
        """The rows that a run with this seed learns on, in random order."""
        return random.Random(f"{self.name}/{seed}").sample(self.learning, count)

    def tested(self, count: int) -> list[Row]:
        """The held-out rows of all runs: the same ones, in random order."""
        return random.Random(self.name).sample(self.held_out, min(count, len(self.held_out)))


def bundled_task() -> Task:
    """The project's own task, with the prompt of its reference flow."""
    entries = _entries(BUNDLED)
    return Task(
        name="everyday-intents",
        field="intent",
        instruction="Classify the user's request into one of these intents: music, weather, "
        "restaurant, movie, alarm, taxi, language. Answer with the intent only.",
        demonstration_sizes=(14, 21),
        learning=_rows(entry for entry in entries if entry["split"] == "learning"),
        held_out=_rows(entry for entry in entries if entry["split"] == "held_out"),
    )


def sms_spam(folder: Path) -> Task:
    """Two kinds of text messages (SMS Spam Collection, Almeida et al. 2011)."""
    return Task(
        name="sms-spam",
        field="kind",
        instruction="Decide whether a text message is spam or ham (not spam). "
        "Answer with one word, spam or ham.",
        demonstration_sizes=(8, 16),
        learning=_rows(_entries(folder / "sms-spam" / "pool.jsonl")),
        held_out=_rows(_entries(folder / "sms-spam" / "test.jsonl")),
    )


def banking(folder: Path) -> Task:
    """Six of the intents of Banking77 (Casanueva et al. 2020)."""
    return Task(
        name="banking-six",
        field="intent",
        instruction="Classify the customer's question into one of these intents: card_arrival, "
        "change_pin, exchange_rate, lost_or_stolen_card, pending_transfer, top_up_failed. "
        "Answer with the intent only.",
        demonstration_sizes=(12, 18),
        learning=_rows(_entries(folder / "banking77" / "six_intents.pool.jsonl")),
        held_out=_rows(_entries(folder / "banking77" / "six_intents.test.jsonl")),
    )


def stream(rows: Sequence[Row], *, seed: int) -> Iterator[Row]:
    """The rows without end: each pass over them in another order."""
    chance = random.Random(seed)
    while True:
        yield from chance.sample(rows, len(rows))


def _entries(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _rows(entries: Iterable[dict[str, str]]) -> tuple[Row, ...]:
    return tuple(
        Row(entry.get("id", str(number)), entry["text"], entry["label"])
        for number, entry in enumerate(entries)
    )
