"""Demonstrations are worth showing, and their sets are balanced, varied and never the same."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_mipro.config import DemonstrationSettings
from prefect_mipro.models.candidates import Candidate, Statistics
from prefect_mipro.models.levers import Demonstration, DemonstrationsValue
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.demonstrations import (
    ProposedSet,
    SetKind,
    WorkedExample,
    known_room,
    propose_sets,
    room_for_demonstrations,
    set_id,
    worked_examples,
)
from tests.optimizer.traces import trace

AT = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = ("music", "alarm", "weather", "book")


def examples(*traces: ExampleTrace, max_characters: int = 100) -> tuple[WorkedExample, ...]:
    return worked_examples(traces, threshold=0.8, max_characters=max_characters)


def pool_of(*traces: ExampleTrace) -> list[tuple[str, str]]:
    shown = [example.demonstration for example in examples(*traces)]
    return [(demonstration.input, demonstration.output) for demonstration in shown]


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


def test_a_demonstration_remembers_where_it_came_from() -> None:
    (example,) = examples(trace("a", example_id="7"))
    shown = example.demonstration
    assert (shown.trace_id, shown.example_id) == ("trace of a", "7")


def test_of_many_good_answers_only_the_best_fifth_are_shown() -> None:
    seen = [trace(f"{n}", reward=0.8 + n / 1000) for n in range(100)]
    assert [asked for asked, _ in pool_of(*seen)] == [f"{n}" for n in range(79, 100)]


def test_where_most_are_perfect_all_of_these_are_shown() -> None:
    seen = [trace(f"{n}", reward=1.0 if n % 4 else 0.9) for n in range(40)]
    assert len(pool_of(*seen)) == 30


# Difficulty


def surprises(*traces: ExampleTrace) -> dict[str, float]:
    return {example.key: example.surprise for example in examples(*traces)}


def test_an_example_that_is_seldom_solved_surprises_most() -> None:
    hard = [trace("hard", example_id="7", reward=float(n == 0)) for n in range(8)]
    easy = [trace("easy", example_id="8") for _ in range(8)]
    found = surprises(*hard, *easy, trace("once", example_id="9"))
    assert found["hard"] > found["once"] > found["easy"] > 0
    # Of 17 rewards 10 are 1; two of that mean are added to the 8 of the hard example.
    assert found["hard"] == pytest.approx(1 - (1 + 2 * 10 / 17) / 10)


def test_without_ids_equal_inputs_are_one_example() -> None:
    hard = [trace("hard", reward=float(n == 0)) for n in range(8)]
    found = surprises(*hard, trace("once"))
    assert found["hard"] > found["once"]


def test_an_example_that_was_never_solved_is_no_surprise() -> None:
    found = surprises(trace("a", "wrong", reward=0.0, expected="alarm"), trace("b"))
    assert found["a"] < 0 < found["b"]


# Sets


def worked(asked: str, answer: str, surprise: float = 0.0) -> WorkedExample:
    return WorkedExample(Demonstration(input=asked, output=answer), surprise)


def labelled(per_label: int, *, labels: tuple[str, ...] = LABELS) -> list[WorkedExample]:
    return [
        worked(f"{label} request number {n}", label) for n in range(per_label) for label in labels
    ]


def proposed(
    pool: list[WorkedExample],
    *,
    sizes: tuple[int, ...] = (8,),
    count: int = 4,
    existing: list[DemonstrationsValue] | None = None,
    max_set_characters: int = 12_000,
    seed: int = 0,
) -> list[ProposedSet]:
    return propose_sets(
        pool,
        existing=existing or [],
        count=count,
        settings=DemonstrationSettings(sizes=list(sizes), max_set_characters=max_set_characters),
        rng=np.random.default_rng(seed),
    )


def sets(pool: list[WorkedExample], **how: Any) -> list[tuple[Demonstration, ...]]:
    return [made.value.demonstrations for made in proposed(pool, **how)]


def members(pool: list[WorkedExample]) -> set[Demonstration]:
    return {example.demonstration for example in pool}


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
        worked("rain?", "weather"),
    ]
    for chosen in sets(pool, sizes=(9,)):
        assert Counter(outputs(chosen)) == {"music": 4, "alarm": 4, "weather": 1}


def test_free_text_answers_are_taken_from_the_whole_pool() -> None:
    pool = [worked(f"question {n}", f"answer {n}") for n in range(20)]
    made = sets(pool, sizes=(8,), count=3)
    assert [len(set(chosen)) for chosen in made] == [8, 8, 8]


def test_no_set_is_made_twice() -> None:
    pool = labelled(3, labels=("yes", "no"))
    first = sets(pool, sizes=(4,), count=5)
    assert len({frozenset(chosen) for chosen in first}) == 5
    existing = [DemonstrationsValue(demonstrations=chosen) for chosen in first]
    second = sets(pool, sizes=(4,), count=50, existing=existing)
    made = [frozenset(chosen) for chosen in [*first, *second]]
    assert len(set(made)) == len(made) <= 9


def test_a_pool_smaller_than_every_size_is_one_set() -> None:
    pool = labelled(1)
    (chosen,) = sets(pool, sizes=(16, 8), count=3)
    assert set(chosen) == members(pool)


def test_random_diverse_and_hard_sets_take_turns_over_the_rounds() -> None:
    first = proposed(labelled(10), count=2)
    later = proposed(labelled(10), count=2, existing=[made.value for made in first], seed=1)
    kinds = [made.kind for made in [*first, *later]]
    assert kinds == [SetKind.RANDOM, SetKind.DIVERSE, SetKind.HARD, SetKind.RANDOM]


def test_a_diverse_set_avoids_similar_inputs() -> None:
    similar = [worked(f"play some jazz please {n}", "ok") for n in range(12)]
    others = [
        worked(text, "ok")
        for text in ("wake me early", "is it raining", "rate this novel", "book a table")
    ]
    for seed in range(5):
        _, diverse = sets([*similar, *others], sizes=(5,), count=2, seed=seed)
        assert members(others) <= set(diverse)


def test_a_hard_set_shows_hard_examples_that_were_solved_of_every_label() -> None:
    pool = [worked(f"{label} {n}", label, surprise=n / 10) for n in range(8) for label in LABELS]
    _, _, hard = sets(pool, sizes=(8,), count=3)
    assert {shown.input.rpartition(" ")[2] for shown in hard} == {"6", "7"}
    assert set(Counter(outputs(hard)).values()) == {2}


# Sources


def unmarked(count: int, **fields: Any) -> list[ExampleTrace]:
    return [trace(f"question {n}", f"answer {n}", **fields) for n in range(count)]


def set_of(*traces: ExampleTrace, size: int = 8) -> list[tuple[Demonstration, ...]]:
    return sets(list(examples(*traces)), sizes=(size,), count=1)


@pytest.mark.parametrize("named", ["user", "correlation_id", "example_id"])
def test_no_source_fills_more_than_a_quarter_of_a_set(named: str) -> None:
    loud = [trace(f"loud {n}", f"answer {n}", **{named: "loud"}) for n in range(20)]
    others = [trace(f"other {n}", f"reply {n}", **{named: f"{n}"}) for n in range(20)]
    for chosen in sets(list(examples(*loud, *others)), sizes=(8,), count=5):
        assert sum("loud" in shown.input for shown in chosen) <= max(1, len(chosen) // 4)


def test_what_one_source_rewarded_alone_makes_no_set() -> None:
    assert set_of(*unmarked(20, user="loud")) == []
    (chosen,) = set_of(*unmarked(20, user="loud"), trace("b", "c", user="ada"))
    assert len(chosen) == 2


def test_to_name_no_source_where_others_do_is_one_source() -> None:
    assert set_of(*unmarked(20), trace("b", "c", user="ada", reward=0.0)) == []


def test_where_no_call_names_a_source_each_is_one() -> None:
    (chosen,) = set_of(*unmarked(20))
    assert len(chosen) == 8


def test_marked_calls_of_a_few_sources_are_told_apart_by_their_examples_alone() -> None:
    (chosen,) = set_of(*unmarked(20, user="me", shareable=True))
    assert len(chosen) == 8


# Limits


def test_no_set_is_longer_than_allowed() -> None:
    pool = [worked("x" * (10 * n), "ok") for n in range(1, 30)]
    for chosen in sets(pool, sizes=(16,), count=6, max_set_characters=400):
        assert 0 < sum(len(shown.input) + len(shown.output) for shown in chosen) <= 400


def test_what_does_not_fit_gives_way_to_what_does() -> None:
    pool = [worked("x" * 90, "ok"), *(worked(f"{n}", "ok") for n in range(7))]
    assert all(len(chosen) == 7 for chosen in sets(pool, sizes=(7,), max_set_characters=30))


def test_where_nothing_fits_there_are_no_sets() -> None:
    assert sets(labelled(10), max_set_characters=5) == []
    assert examples(trace("a"), max_characters=2) == ()


def test_no_sets_are_made_where_none_are_wanted() -> None:
    assert sets(labelled(10), count=0) == []


# Names


def test_the_id_of_a_set_is_its_content_in_its_order() -> None:
    turns = tuple(example.demonstration for example in labelled(1))
    one = DemonstrationsValue(demonstrations=turns)
    assert set_id(one) == "738ea145a3b8"
    again = [shown.model_copy(update={"trace_id": "another", "example_id": "7"}) for shown in turns]
    assert set_id(DemonstrationsValue(demonstrations=tuple(again))) == set_id(one)
    assert set_id(DemonstrationsValue(demonstrations=turns[::-1])) != set_id(one)
    assert set_id(DemonstrationsValue(demonstrations=turns[:-1])) != set_id(one)


def test_sets_repeat_with_the_seed_and_vary_between_seeds() -> None:
    pool = labelled(10)
    assert sets(pool, seed=1) == sets(pool, seed=1)
    assert sets(pool, seed=1) != sets(pool, seed=2)


@settings(max_examples=100)
@given(
    answers=st.lists(st.sampled_from("abcdef"), max_size=30),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    count=st.integers(0, 4),
)
def test_any_pool_gives_sets_of_its_own_members(
    answers: list[str], sizes: list[int], count: int
) -> None:
    pool = [worked(f"input {n}", answer) for n, answer in enumerate(answers)]
    made = sets(pool, sizes=tuple(sizes), count=count)
    assert len(made) <= count
    for chosen in made:
        assert 0 < len(chosen) <= max(*sizes, len(set(answers))) + len(set(answers))
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= members(pool)


def test_the_room_for_demonstrations_follows_from_the_share_that_fits() -> None:
    # 900 of 1,000 characters fit, less a tenth for uneven tokens; 400 are the caller's own.
    assert room_for_demonstrations(1_000, added=600, fits=0.9) == 410
    assert room_for_demonstrations(1_000, added=600, fits=None) == 300


def test_a_caller_whose_own_prompt_is_too_long_tells_no_room() -> None:
    assert room_for_demonstrations(1_000, added=600, fits=0.3) is None
    assert room_for_demonstrations(1_000, added=0, fits=None) is None


def test_the_room_is_that_of_candidates_retired_after_more_than_one_refusal() -> None:
    def refused(number: int, room: int, failures: int, *, retired: bool = True) -> Candidate:
        return Candidate(
            candidate_id=f"cand_{number}",
            session_id="s",
            number=number,
            instruction_version=1,
            demonstrations_version=number,
            created_at=AT,
            retired_at=AT if retired else None,
            demonstration_room=room,
            statistics=Statistics(failures=failures),
        )

    unusual, in_play = refused(1, 100, 1), refused(2, 200, 5, retired=False)
    assert known_room([unusual, in_play]) is None
    assert known_room([unusual, in_play, refused(3, 400, 2), refused(4, 300, 2)]) == 300
