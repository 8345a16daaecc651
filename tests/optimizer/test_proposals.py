"""When proposals are due, how many there is room for, and what the proposer model is asked."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from prefect_mipro.config import MiproSettings
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.optimizer.meta_prompts import Operator
from prefect_mipro.optimizer.proposals import (
    Room,
    asks_model,
    due,
    model_share,
    room,
    suitable,
    turns,
)
from tests.optimizer.arms import START


def candidate(
    number: int = 1, *, levers: tuple[int, int] = (1, 1), retired: bool = False
) -> Candidate:
    return Candidate(
        candidate_id=f"candidate-{number}",
        session_id="session",
        number=number,
        instruction_version=levers[0],
        demonstrations_version=levers[1],
        created_at=START,
        retired_at=START if retired else None,
    )


def session(**fields: Any) -> Session:
    return Session(
        session_id="session",
        state=SessionState.RUNNING,
        config={},
        proxy_secret="0" * 32,
        digest_key="1" * 32,
        baseline_id="candidate-1",
        champion_id="candidate-1",
        created_at=START,
        updated_at=START,
        **fields,
    )


def settings_of(**fields: Any) -> MiproSettings:
    return MiproSettings.model_validate(fields)


# When


def waits(
    rewards: int,
    *,
    rollouts: int = 1_000,
    active: int = 1,
    seconds: float = 1e6,
    done: dict[str, int] | None = None,
    **fields: Any,
) -> str:
    return due(
        session(rewards=rewards, rollouts=rollouts, **(done or {})),
        active=active,
        settings=settings_of(**fields),
        seconds_since_round=seconds,
    )


def test_the_first_round_is_due_after_20_rewards() -> None:
    assert waits(20) == ""
    assert waits(12) == "8 more rewards"


def test_it_names_everything_it_waits_for() -> None:
    words = waits(5, rollouts=15, seconds=29.5, online_proposer_min_seconds=30)
    assert words == "15 more rewards and 5 more rollouts and 0.5 more seconds"


@pytest.mark.parametrize(("active", "spacing"), [(1, 50), (25, 50), (40, 80)])
def test_the_next_round_leaves_time_to_try_the_last_ones_candidates(
    active: int, spacing: int
) -> None:
    last = {"proposal_number": 1, "proposal_rewards": 20}
    assert waits(19 + spacing, active=active, done=last) == "1 more reward"
    assert waits(20 + spacing, active=active, done=last) == ""


@pytest.mark.parametrize("failures", [0, 1, 4, 40])
def test_a_failing_proposer_never_delays_a_round(failures: int) -> None:
    last = {"proposal_number": 5, "proposal_rewards": 100, "proposal_failures": failures}
    assert waits(150, done=last) == ""


def test_listed_iterations_are_the_only_rounds() -> None:
    listed: dict[str, Any] = {"proposer": {"generate_at_iterations": [0, 2]}}
    assert waits(119, **listed) == ""
    one = {"proposal_number": 1, "proposal_rewards": 20}
    assert waits(119, done=one, **listed) == "1 more reward"
    two = {"proposal_number": 2, "proposal_rewards": 120}
    assert waits(119, done=two, **listed) == "nothing: the rounds [0, 2] are done"


def test_switched_off_no_round_is_ever_due() -> None:
    assert waits(100, online_proposer_mode="off") == "nothing: proposals are off"


def test_a_round_is_due_without_room_because_it_makes_room_first() -> None:
    assert waits(500, online_proposer_max_candidates=1) == ""


# How many


def test_room_counts_what_is_in_play() -> None:
    pool = [
        candidate(1),
        candidate(2, levers=(2, 1)),
        candidate(3, levers=(2, 2)),
        candidate(4, levers=(3, 3), retired=True),
    ]
    fields = {"max_instruction_slots": 4, "demonstrations": {"max_sets": 2}}
    assert room(pool, settings=settings_of(**fields)) == Room(2, 1)
    few = settings_of(**fields, online_proposer_max_candidates=4)
    assert room(pool, settings=few) == Room(1, 1)
    full = settings_of(**fields, online_proposer_max_candidates=3)
    assert room(pool, settings=full) == Room(0, 0)


@pytest.mark.parametrize(
    ("mode", "left"), [("instruction_only", Room(5, 0)), ("demonstrations_only", Room(0, 6))]
)
def test_the_mode_leaves_room_for_its_lever_only(mode: str, left: Room) -> None:
    assert room([candidate()], settings=settings_of(proposer={"mode": mode})) == left


# The model


@pytest.mark.parametrize(
    ("failures", "rounds"),
    [
        (0, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (1, [0, 2, 4, 6, 8]),
        (2, [0, 4, 8]),
        (3, [0, 8]),
        (4, [0, 16, 32]),
        (90, [0, 16, 32]),
    ],
)
def test_each_failure_in_a_row_halves_how_often_the_model_is_asked(
    failures: int, rounds: list[int]
) -> None:
    asked = [
        number
        for number in range(rounds[-1] + 1)
        if asks_model(session(proposal_number=number, proposal_failures=failures))
    ]
    assert asked == rounds


@pytest.mark.parametrize("wanted", [2, 3, 4, 7])
def test_the_policy_model_writes_at_most_half_of_a_round(wanted: int) -> None:
    for number in range(4):
        assert model_share(wanted, own_model=True, round_number=number) == wanted // 2
        assert model_share(wanted, own_model=False, round_number=number) == (wanted + 1) // 2


def test_a_single_instruction_is_the_policy_models_every_other_round() -> None:
    shares = [model_share(1, own_model=True, round_number=number) for number in range(6)]
    assert shares == [0, 0, 1, 0, 1, 0]
    assert model_share(0, own_model=True, round_number=2) == 0


def test_a_model_that_failed_is_asked_again_for_single_instructions() -> None:
    failed = session(proposal_number=16, proposal_failures=9)
    assert asks_model(failed)
    assert model_share(1, own_model=True, round_number=16) == 1


SHORT = "Classify the request. Answer with the intent only."


@pytest.mark.parametrize(
    ("parent", "failures", "possible"),
    [
        (SHORT, False, {Operator.PROPOSE}),
        (SHORT, True, {Operator.PROPOSE, Operator.REFLECT}),
        (SHORT * 3, True, {Operator.PROPOSE, Operator.REFLECT}),
        (SHORT * 8, True, set(Operator)),
    ],
)
def test_what_the_model_may_sensibly_do(
    parent: str, failures: bool, possible: set[Operator]
) -> None:
    assert set(suitable(parent, baseline=SHORT, failures=failures)) == possible


def test_a_long_parent_of_a_long_baseline_is_not_shortened() -> None:
    assert suitable(SHORT * 28, baseline=SHORT * 20, failures=False) == (Operator.PROPOSE,)


def test_operators_take_turns() -> None:
    orders = set()
    for seed in range(20):
        order = tuple(islice(turns(np.random.default_rng(seed)), 6))
        assert set(order[:3]) == set(Operator)
        assert order[3:] == order[:3]
        orders.add(order)
    assert len(orders) > 3
