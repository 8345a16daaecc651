"""When a question is open, and when an approval is overtaken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import State
from prefect.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
    Suspended,
)

from prefect_mipro.flows.approvals import Question, can_act
from prefect_mipro.flows.promotion import overtaken
from tests.plugin.examples import candidate, candidate_id, status
from tests.plugin.test_champion import champion

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RUN = UUID(int=1)


def question(**changes: Any) -> Question:
    """A question about candidate 2 in place of candidate 1, asked a day ago."""
    values: dict[str, Any] = {
        "session_id": "support-bot",
        "champion": "support-bot",
        "candidate_id": candidate_id(2),
        "number": 2,
        "in_use_id": candidate_id(1),
        "session_champion_id": candidate_id(1),
        "run_id": RUN,
        "run_name": "brave-owl",
        "holder_id": RUN,
        "asked_at": NOW - timedelta(days=1),
    }
    return Question(**(values | changes))


@pytest.mark.parametrize(
    "state",
    [
        Suspended(pause_expiration_time=NOW + timedelta(seconds=1)),
        Paused(pause_expiration_time=NOW + timedelta(seconds=1)),
        Scheduled(),
        Pending(),
        Running(timestamp=NOW - timedelta(minutes=59)),
    ],
    ids=lambda state: state.name,
)
def test_a_run_can_act_on_an_answer_until_it_ends(state: State[Any]) -> None:
    assert can_act(state, question(), now=NOW)


@pytest.mark.parametrize(
    "state",
    [
        Suspended(pause_expiration_time=NOW),
        Paused(pause_expiration_time=NOW),
        Running(timestamp=NOW - timedelta(minutes=61)),
        Cancelling(),
        Cancelled(),
        Crashed(),
        Failed(),
        Completed(),
    ],
    ids=lambda state: state.name,
)
def test_a_run_that_has_ended_or_was_killed_cannot(state: State[Any]) -> None:
    assert not can_act(state, question(), now=NOW)


def test_a_run_that_took_long_to_find_a_candidate_can_still_ask() -> None:
    began: State[Any] = Running(timestamp=NOW - timedelta(hours=3))
    assert can_act(began, question(asked_at=NOW), now=NOW)


def test_questions_about_other_candidates_sessions_and_blocks_have_other_variables() -> None:
    asked = [
        question(),
        question(candidate_id=candidate_id(3)),
        question(session_id="other"),
        question(champion="staging"),
    ]
    assert len({each.variable for each in asked}) == len(asked)
    assert question().variable == question(holder_id=UUID(int=2), asked_at=NOW).variable


FACTS = [candidate(1), candidate(2), candidate(3)]


@pytest.mark.parametrize("leader", [1, 2], ids=["as before", "it won a duel meanwhile"])
def test_an_approval_holds_while_nothing_else_was_promoted(leader: int) -> None:
    assert overtaken(question(), champion(1), status(*FACTS, champion=leader)) is None


def test_a_retired_candidate_that_was_asked_about_by_name_can_be_approved() -> None:
    told = status(candidate(1), candidate(2, status="retired"))
    assert overtaken(question(was_retired=True), champion(1), told) is None


@pytest.mark.parametrize(
    ("in_use", "told", "reason"),
    [
        ((1, 2), status(*FACTS), "candidate 2 is in use already"),
        ((1, 3), status(*FACTS), "candidate 3 was put to use after the question was asked"),
        ((1,), status(*FACTS, champion=3), "candidate 3 became the session's champion"),
        (
            (1,),
            status(candidate(1), candidate(2, status="retired", retired_reason="it fails")),
            "candidate 2 was retired after the question was asked: it fails",
        ),
        ((1,), status(candidate(1)), "the session has no candidate cand_000000000002 any more"),
    ],
    ids=["in use", "another in use", "another champion", "retired", "gone"],
)
def test_an_approval_is_overtaken_by_what_has_happened_since(
    in_use: tuple[int, ...], told: Any, reason: str
) -> None:
    found = overtaken(question(), champion(*in_use), told)
    assert found is not None
    assert found.startswith(reason)
