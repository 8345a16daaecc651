"""What a person reads before a decision: above the form, and on the page that it links to."""

from __future__ import annotations

from typing import Any

from prefect_mipro.artifacts.answers import ROWS, Answers
from prefect_mipro.flows.promotion_page import Proposal, question, question_page
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.models.summaries import Evaluation
from tests.plugin.examples import candidate, candidate_id, status
from tests.plugin.test_champion import version


def trace(number: int, example: str | None, output: str, **changes: Any) -> ExampleTrace:
    """An answer of candidate `number`."""
    values = {
        "trace_id": f"trace_{number}_{example}",
        "rollout_id": f"r_{number}_{example}",
        "candidate_id": candidate_id(number),
        "example_id": example,
        "input": f"Input {example}",
        "output": output,
        "reward": 0.5,
    }
    return ExampleTrace(**(values | changes))


def proposal(**changes: Any) -> Proposal:
    """Candidate 3 in place of candidate 2, in a session that began with candidate 1."""
    values: dict[str, Any] = {
        "version": version(3),
        "present": version(2),
        "status": status(
            candidate(1), candidate(2), candidate(3, calls=20, failures=2, failure_rate=0.1)
        ),
        "evaluations": (),
        "answers": Answers.of([trace(2, "7", "one | `x`")], [trace(3, "7", "two")]),
    }
    return Proposal(**(values | changes))


def test_different_answers_to_the_same_example_come_first() -> None:
    before = [trace(2, "1", "same"), trace(2, "2", "old"), trace(2, "8", "alone")]
    after = [trace(3, "9", "alone"), trace(3, "1", "same"), trace(3, "2", "new")]
    answers = Answers.of(before, after)
    shown = [
        (row.before and row.before.output, row.after and row.after.output) for row in answers.rows
    ]
    assert shown == [("old", "new"), ("same", "same"), (None, "alone")]
    assert (answers.shared, answers.alike) == (2, 1)


def test_without_ids_equal_inputs_are_one_example_and_the_newest_answer_counts() -> None:
    before = [trace(2, None, "newest", input="Hi"), trace(2, None, "older", input="Hi")]
    (row,) = Answers.of(before, [trace(3, None, "new", input="Hi")]).rows
    assert row.before is not None
    assert (row.input, row.before.output) == ("Hi", "newest")


def test_without_a_common_example_both_are_shown_in_turns() -> None:
    before = [trace(2, str(number), "old") for number in range(5)]
    after = [trace(3, str(number), "new") for number in range(5, 10)]
    answers = Answers.of(before, after)
    assert [row.after is None for row in answers.rows] == [False, True, False]
    assert len(answers.rows) == ROWS


def test_the_form_says_what_to_decide_by_in_one_small_table() -> None:
    evaluations = [
        Evaluation.of(candidate_id(1), [0.0, 1.0]),
        Evaluation.of(candidate_id(2), [1.0, 1.0]),
    ]
    lines = question(proposal(evaluations=evaluations), page_url="../page").splitlines()
    assert lines == [
        "| Use candidate 3 in place of candidate 2? [Instructions](../page) | "
        "candidate 2, in use | candidate 3 |",
        "| --- | --- | --- |",
        "| Reward, held out (baseline 0.50) | 1.00 (0.34-1.00) | 0.06 in traffic |",
        "| Tokens per rollout | 48 | 48 |",
        "| Calls failed by prompt | 0% (0 of 0) | 10% (2 of 20) |",
        r"| Input 7 | one \| \`x\` (0.50) | two (0.50) |",
    ]


def test_the_form_stays_small_with_long_texts() -> None:
    words = "word " * 500
    long = [trace(2, str(number), f"{words}{number}", input=words) for number in range(9)]
    other = [trace(3, str(number), f"other {words}", input=words) for number in range(9)]
    form = question(proposal(answers=Answers.of(long, other)), page_url="../page")
    assert len(form.splitlines()) == 5 + ROWS
    assert max(map(len, form.splitlines())) < 150


def test_the_page_has_the_baseline_the_change_and_the_whole_answers() -> None:
    page = question_page(proposal())
    assert "| candidate 1, baseline | candidate 2, in use | candidate 3 |" in page
    assert r"Wording ~~2\.~~ **3\.** Answer" in page
    assert page.endswith("> user: {request}")
    assert r"| Input 7 | one \| \`x\` (0.50) | two (0.50) |" in page


def test_a_prompt_of_another_session_is_compared_with_the_baseline() -> None:
    stranger = version(2, candidate_id="cand_of_earlier")
    page = question_page(proposal(present=stranger))
    assert "| candidate 1, baseline | candidate 3 |" in page


def test_without_answers_the_page_says_so() -> None:
    assert "There are no answers to show." in question_page(proposal(answers=Answers()))
