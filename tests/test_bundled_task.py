"""The bundled task: balanced, free of doubles, and honest between its halves."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

Row = dict[str, str]

PATH = Path(__file__).parent.parent / "flows" / "data" / "everyday_intents.jsonl"
NEAR_COPY = 0.6


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def words(row: Row) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", row["text"].casefold()))


def test_every_intent_has_as_many_requests_in_each_half(rows: list[Row]) -> None:
    counts = Counter((row["label"], row["split"]) for row in rows)
    assert len(counts) == 14
    assert set(counts.values()) == {36}


def test_ids_and_texts_are_unique(rows: list[Row]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({" ".join(re.findall(r"\w+", row["text"].casefold())) for row in rows}) == len(rows)


def test_no_held_out_request_is_a_near_copy_of_one_for_learning(rows: list[Row]) -> None:
    halves: dict[str, list[frozenset[str]]] = {"learning": [], "held_out": []}
    for row in rows:
        halves[row["split"]].append(words(row))
    nearest = max(
        len(one & other) / len(one | other)
        for one in halves["learning"]
        for other in halves["held_out"]
    )
    assert nearest < NEAR_COPY


def test_any_beginning_of_the_held_out_half_is_balanced(rows: list[Row]) -> None:
    first = [row["label"] for row in rows if row["split"] == "held_out"][:210]
    assert set(Counter(first).values()) == {30}
