"""Demonstrations are worth showing, and their sets are balanced, varied and never the same."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_mipro.config import DemonstrationSettings
from prefect_mipro.models.levers import Demonstration, DemonstrationsValue
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.demonstrations import examples, propose_sets

LABELS = ("music", "alarm", "weather", "book")


def trace(
    asked: str, answered: str = "music", *, reward: float = 1.0, **fields: Any
) -> ExampleTrace:
    return ExampleTrace(
        trace_id=f"trace of {asked}",
        rollout_id="rollout",
        candidate_id="candidate",
        input=asked,
        output=answered,
        reward=reward,
        **fields,
    )


def pool_of(
    *traces: ExampleTrace, max_characters: int = 100, held_out: str | None = "none"
) -> list[tuple[str, str]]:
    pool = examples(
        traces,
        threshold=0.8,
        max_characters=max_characters,
        held_out=lambda example_id: example_id == held_out,
    )
    return [(demonstration.input, demonstration.output) for demonstration in pool]


# The pool


def test_a_rewarded_answer_is_shown_as_it_was() -> None:
    assert pool_of(trace("a", "music", reward=0.8)) == [("a", "music")]


def test_a_poorly_rewarded_answer_is_not_shown() -> None:
    assert pool_of(trace("a", reward=0.79)) == []


def test_an_expected_answer_takes_the_place_of_the_recorded_one_whatever_the_reward() -> None:
    assert pool_of(trace("a", "wrong", reward=0.0, expected="alarm")) == [("a", "alarm")]


def test_of_equal_inputs_the_newest_stays() -> None:
    assert pool_of(trace("Play  jazz", "new"), trace("play jazz\n", "old")) == [
        ("Play  jazz", "new")
    ]


def test_a_newer_answer_that_failed_does_not_hide_an_older_one() -> None:
    assert pool_of(trace("a", "bad", reward=0.0), trace("a", "good")) == [("a", "good")]


@pytest.mark.parametrize(
    ("asked", "answered"), [("", "music"), (" \n", "music"), ("a", ""), ("a", " ")]
)
def test_empty_texts_are_not_shown(asked: str, answered: str) -> None:
    assert pool_of(trace(asked, answered)) == []


def test_too_long_demonstrations_are_not_shown() -> None:
    fits, too_long = trace("a" * 94, "answer"), trace("b" * 95, "answer")
    assert pool_of(fits, too_long) == [("a" * 94, "answer")]


def test_held_out_examples_are_not_shown() -> None:
    seen = [trace("a", example_id="7"), trace("b", example_id="8"), trace("c")]
    assert pool_of(*seen, held_out="7") == [("b", "music"), ("c", "music")]


def test_a_demonstration_remembers_where_it_came_from() -> None:
    (shown,) = examples(
        [trace("a", example_id="7")], threshold=0.5, max_characters=10, held_out=lambda _: False
    )
    assert (shown.trace_id, shown.example_id) == ("trace of a", "7")


# Sets


def labelled(per_label: int, *, labels: tuple[str, ...] = LABELS) -> list[Demonstration]:
    return [
        Demonstration(input=f"{label} request number {n}", output=label)
        for n in range(per_label)
        for label in labels
    ]


def sets(
    pool: list[Demonstration],
    *,
    sizes: tuple[int, ...] = (8,),
    count: int = 4,
    existing: list[DemonstrationsValue] | None = None,
    seed: int = 0,
) -> list[tuple[Demonstration, ...]]:
    made = propose_sets(
        pool,
        existing=existing or [],
        count=count,
        settings=DemonstrationSettings(sizes=list(sizes)),
        rng=np.random.default_rng(seed),
    )
    return [value.demonstrations for value in made]


def outputs(chosen: tuple[Demonstration, ...]) -> list[str]:
    return [demonstration.output for demonstration in chosen]


def test_an_empty_pool_has_no_sets() -> None:
    assert sets([]) == []


def test_sets_have_the_asked_sizes() -> None:
    made = sets(labelled(10), sizes=(4, 8, 16), count=12)
    assert {len(chosen) for chosen in made} == {4, 8, 16}


def test_every_label_gets_the_same_number_of_turns() -> None:
    for chosen in sets(labelled(10), sizes=(8,)):
        assert set(Counter(outputs(chosen)).values()) == {2}


def test_sizes_grow_to_whole_rounds_of_the_labels() -> None:
    seven = tuple("abcdefg")
    made = sets(labelled(10, labels=seven), sizes=(4, 8, 16), count=12)
    assert {len(chosen) for chosen in made} == {7, 14, 21}
    assert all(len(set(Counter(outputs(chosen)).values())) == 1 for chosen in made)


def test_sizes_stay_when_there_are_more_labels_than_turns() -> None:
    many = tuple(f"label {n}" for n in range(20))
    made = sets(labelled(4, labels=many), sizes=(4, 16), count=8)
    assert {len(chosen) for chosen in made} == {4, 16}
    assert all(max(Counter(outputs(chosen)).values()) == 1 for chosen in made)


def test_turns_of_one_label_are_not_bunched_together() -> None:
    for chosen in sets(labelled(10), sizes=(16,), count=8):
        rounds = [outputs(chosen)[start : start + 4] for start in range(0, 16, 4)]
        assert all(sorted(labels) == sorted(LABELS) for labels in rounds)


def test_the_order_of_labels_changes_from_round_to_round() -> None:
    (chosen,) = sets(labelled(10), sizes=(16,), count=1)
    rounds = [outputs(chosen)[start : start + 4] for start in range(0, 16, 4)]
    assert any(a != b for a, b in pairwise(rounds))


def test_a_rare_label_gives_what_it_has() -> None:
    pool = [
        *labelled(10, labels=("music", "alarm")),
        Demonstration(input="rain?", output="weather"),
    ]
    for chosen in sets(pool, sizes=(9,)):
        assert Counter(outputs(chosen)) == {"music": 4, "alarm": 4, "weather": 1}


def test_free_text_answers_are_taken_from_the_whole_pool() -> None:
    pool = [Demonstration(input=f"question {n}", output=f"answer {n}") for n in range(20)]
    made = sets(pool, sizes=(8,), count=3)
    assert [len(set(chosen)) for chosen in made] == [8, 8, 8]


def test_no_set_is_made_twice() -> None:
    pool = labelled(3, labels=("yes", "no"))
    first = sets(pool, sizes=(4,), count=5)
    assert len({frozenset(chosen) for chosen in first}) == 5
    existing = [DemonstrationsValue(demonstrations=chosen) for chosen in first]
    second = sets(pool, sizes=(4,), count=50, existing=existing)
    members = [frozenset(chosen) for chosen in [*first, *second]]
    assert len(set(members)) == len(members) <= 9


def test_a_pool_smaller_than_every_size_is_one_set() -> None:
    pool = labelled(1)
    (chosen,) = sets(pool, sizes=(16, 8), count=3)
    assert set(chosen) == set(pool)


def test_every_other_set_avoids_similar_inputs() -> None:
    similar = [Demonstration(input=f"play some jazz please {n}", output="ok") for n in range(12)]
    others = [
        Demonstration(input=text, output="ok")
        for text in ("wake me early", "is it raining", "rate this novel", "book a table")
    ]
    for seed in range(5):
        _, diverse = sets([*similar, *others], sizes=(5,), count=2, seed=seed)
        assert set(others) <= set(diverse)


def test_sets_repeat_with_the_seed_and_vary_between_seeds() -> None:
    pool = labelled(10)
    assert sets(pool, seed=1) == sets(pool, seed=1)
    assert sets(pool, seed=1) != sets(pool, seed=2)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    answers=st.lists(st.sampled_from("abcdef"), max_size=30),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    count=st.integers(0, 4),
)
def test_any_pool_gives_sets_of_its_own_members(
    answers: list[str], sizes: list[int], count: int
) -> None:
    pool = [Demonstration(input=f"input {n}", output=answer) for n, answer in enumerate(answers)]
    made = sets(pool, sizes=tuple(sizes), count=count)
    assert len(made) <= count
    for chosen in made:
        assert 0 < len(chosen) <= max(*sizes, len(set(answers))) + len(set(answers))
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(pool)
