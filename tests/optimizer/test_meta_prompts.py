"""The proposer model is asked safely: recorded text stays data whatever is written in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.grounding import Grounding
from prefect_mipro.optimizer.meta_prompts import (
    TEMPLATE_VERSIONS,
    TIPS,
    Operator,
    parse,
    propose,
    reflect,
    shorten,
)
from tests.optimizer.traces import HOSTILE, NONCE, trace

BASELINE = "Classify the user's request into one intent. Answer with the intent only."


def user_text(messages: list[ChatMessage]) -> str:
    assert [message["role"] for message in messages] == ["system", "user"]
    return str(messages[1]["content"])


def proposing(
    traces: Sequence[ExampleTrace] = (),
    *,
    baseline: str = BASELINE,
    history: Sequence[tuple[str, float, int]] = (("Best.", 0.71, 30), ("Worst.", 0.2, 12)),
) -> str:
    """The request that is grounded in these calls, all of which are shown."""
    messages = propose(
        baseline=baseline,
        parent="Name the intent.",
        history=history,
        grounding=Grounding.of(traces, threshold=0.8),
        examples=[Demonstration(input=t.input, output=t.expected or t.output) for t in traces],
        tip=TIPS[0],
        nonce=NONCE,
    )
    return user_text(messages)


def reflecting(traces: Sequence[ExampleTrace] = (), *, good: Sequence[ExampleTrace] = ()) -> str:
    messages = reflect(
        baseline=BASELINE, parent="Name the intent.", good=good, bad=traces, nonce=NONCE
    )
    return user_text(messages)


def fenced(text: str) -> list[dict[str, Any]]:
    """What stands between the marks, one JSON object per line."""
    lines = text.splitlines()
    start, end = lines.index(f"<data-{NONCE}>"), lines.index(f"</data-{NONCE}>")
    return [json.loads(line) for line in lines[start + 1 : end]]


# What is asked


def test_every_operator_has_a_template_version_of_its_own() -> None:
    assert TEMPLATE_VERSIONS.keys() == set(Operator)
    assert len(set(TEMPLATE_VERSIONS.values())) == len(Operator)


def test_proposing_shows_the_parent_the_scores_and_the_tip() -> None:
    text = proposing()
    assert BASELINE in text
    assert "Name the intent." in text
    assert text.index("0.20 (12 answers): Worst.") < text.index("0.71 (30 answers): Best.")
    assert TIPS[0] in text


def test_a_baseline_that_is_the_parent_is_shown_once() -> None:
    assert proposing(baseline="Name the intent.").count("Name the intent.") == 1


def test_only_the_best_of_many_instructions_are_shown() -> None:
    text = proposing(history=[(f"Try {n}.", n / 10, 9) for n in range(10)])
    assert "Try 9." in text
    assert "Try 4." in text
    assert "Try 3." not in text


def test_proposing_shows_a_summary_and_worked_examples_in_the_fence() -> None:
    seen = [
        trace(f"{label} {n}", expected=label, reward=0.0, feedback="too long")
        for n in range(2)
        for label in ("alarm", "music")
    ]
    summary, first, *_ = fenced(proposing(seen))
    assert summary == {
        "inputs": 4,
        "input_characters": "7 to 7",
        "answers": {"alarm": "50%", "music": "50%"},
        "mistakes": {"too long": "4 times"},
    }
    assert first == {"input": "alarm 0", "right answer": "alarm"}


def test_reflecting_shows_bad_and_good_answers_by_turns_with_the_feedback() -> None:
    good = [trace("play\njazz", expected="music")]
    bad = [
        trace("wake me", "music", feedback="an alarm", reward=0.0),
        trace("rain?", "music", reward=0.0),
    ]
    text = reflecting(bad, good=good)
    assert fenced(text) == [
        {"verdict": "bad", "input": "wake me", "answer": "music", "feedback": "an alarm"},
        {"verdict": "good", "input": "play\njazz", "answer": "music", "right answer": "music"},
        {"verdict": "bad", "input": "rain?", "answer": "music"},
    ]
    assert "First list up to 3 causes" in text


def test_shortening_shows_no_recorded_call() -> None:
    text = user_text(shorten(baseline=BASELINE, parent="Do this. " * 50))
    assert "at most 60 words" in text
    assert "data-" not in text


@pytest.mark.parametrize(
    "ask",
    [
        lambda baseline: propose(
            baseline=baseline,
            parent=baseline,
            history=[],
            grounding=Grounding(),
            examples=[],
            tip="",
            nonce=NONCE,
        ),
        lambda baseline: reflect(baseline=baseline, parent=baseline, good=[], bad=[], nonce=NONCE),
        lambda baseline: shorten(baseline=baseline, parent=baseline),
    ],
)
def test_every_operator_asks_to_keep_the_placeholders(
    ask: Callable[[str], list[ChatMessage]],
) -> None:
    text = user_text(ask("For {name} on {day}, sort."))
    assert "exactly as they are: {name}, {day}." in text
    assert "<instruction>" in text


def test_long_calls_are_cut_and_many_are_left_out() -> None:
    seen = [trace(f"{n} " * 10_000, "word " * 10_000) for n in range(30)]
    assert len(proposing(seen)) < 6_000
    assert len(reflecting(seen)) < 6_000
    assert 2 <= len(fenced(reflecting(seen))) < 30


# What strangers write


@pytest.mark.parametrize("field", ["input", "output", "expected", "feedback"])
@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("ask", [proposing, reflecting])
def test_recorded_text_cannot_leave_the_fence(
    ask: Callable[[Sequence[ExampleTrace]], str], text: str, field: str
) -> None:
    fields = {"expected": "x", "feedback": "x", field: text}
    harmless = ask([trace(expected="x", feedback="x")])
    request = ask([trace(**fields)])
    assert outside(request) == outside(harmless)
    assert len(fenced(request)) == len(fenced(harmless))


def test_labels_and_remarks_cannot_leave_the_fence() -> None:
    for text in HOSTILE:
        calls = [trace(f"{n}", feedback=text, reward=0.0) for n in range(4)]
        assert outside(proposing(calls)) == outside(proposing([trace()]))


def outside(request: str) -> str:
    """The request without what stands in the fence. Nothing dangerous is in the fence."""
    before, _, rest = request.partition(f"<data-{NONCE}>\n")
    inside, _, after = rest.partition(f"\n</data-{NONCE}>")
    assert request.count(NONCE) == 2
    assert not set("<>") & set(inside)
    assert inside.replace("\n", "").isprintable()
    decoded = "".join(map(str, map(json.loads, inside.split("\n"))))
    assert "[INST]" not in decoded
    assert "<|im_end|>" not in decoded
    return before + after


PIECES = ["<", ">", "/", "|", "data-", NONCE, "\n", '"', "\\", "x", "\u2028", "</data-", "\\u003c"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join))
def test_no_text_whatever_leaves_the_fence(text: str) -> None:
    calls = [trace(text, text, expected=text, feedback=text)]
    for ask in (proposing, reflecting):
        assert outside(ask(calls)) == outside(ask([trace()]))


@settings(max_examples=100)
@given(st.text(max_size=200))
def test_what_is_shown_can_be_read_again(text: str) -> None:
    (shown,) = fenced(reflecting([trace("x", "y", feedback=f"{text}.")]))
    assert shown["feedback"] == f"{text}."


# What comes back


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("<instruction>Name the intent.</instruction>", "Name the intent."),
        ("- too long\n<instruction>\nA: b\nC: d\n</instruction> Done.", "A: b\nC: d"),
        ("Name the intent.", None),
        ("<instruction>one</instruction><instruction>two</instruction>", None),
        ("<instruction><instruction>one</instruction></instruction>", None),
        ("<instruction>  </instruction>", None),
        ("<instruction>no end", None),
        ("</instruction>the wrong way round<instruction>", None),
        ("<instruction>" * 100_000, None),
        ("", None),
    ],
)
def test_exactly_one_instruction_between_tags_is_taken(reply: str, text: str | None) -> None:
    assert parse(reply) == text
