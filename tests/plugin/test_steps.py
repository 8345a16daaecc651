"""The step of a data flow: an answer now, its reward later, each counted once."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import cloudpickle
import pytest

from prefect_mipro import tasks
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import InputInvalid, SessionNotFound
from prefect_mipro.models.summaries import RewardOutcome, RewardReport, RolloutOutcome
from prefect_mipro.tasks import (
    AsyncLiveRollout,
    Judgement,
    LiveRollout,
    RolloutJob,
    SessionHandle,
    report_rewards,
    rollout_step,
    session_status,
)
from tests.fake_upstream import FakeUpstream, Scripted
from tests.plugin.conftest import SYSTEM, config, new_id
from tests.plugin.twins import both, call

ROW = {"id": 7, "request": "play jazz #music"}


def sqlite_row() -> sqlite3.Row:
    connection = sqlite3.connect(":memory:")
    try:
        connection.row_factory = sqlite3.Row
        row: sqlite3.Row = connection.execute(
            "SELECT 7 AS id, 'play jazz #music' AS request"
        ).fetchone()
        return row
    finally:
        connection.close()


def counts(session: SessionHandle) -> tuple[int, int]:
    status = session_status.fn(session)
    return status.rollout_count, status.reward_count


@both
@pytest.mark.parametrize("example", [ROW, sqlite_row(), "play jazz #music"], ids=type)
def test_a_step_fills_the_prompt_of_the_session_with_the_row(
    twin: str, example: Any, session: SessionHandle, model: FakeUpstream
) -> None:
    result = call(f"{twin}rollout_step", example, session=session, rollout_id="one")
    assert model.requests[-1]["messages"] == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "play jazz #music"},
    ]
    assert (result.rollout_id, result.outcome) == ("one", RolloutOutcome.UNREWARDED)
    assert result.answer in ("music", "no idea")
    assert result.example_id == (None if isinstance(example, str) else "7")
    assert counts(session) == (1, 0)


def test_a_step_may_run_a_program_instead(session: SessionHandle) -> None:
    def shout(rollout: LiveRollout, row: dict[str, Any]) -> str:
        return rollout.complete([{"role": "user", "content": row["request"]}]).upper()

    async def ashout(rollout: AsyncLiveRollout, row: dict[str, Any]) -> str:
        return (await rollout.complete([{"role": "user", "content": row["request"]}])).upper()

    for name, program in (("rollout_step", shout), ("arollout_step", ashout)):
        assert call(name, ROW, session=session, program=program).answer.isupper()


@both
def test_a_step_raises_what_its_model_raises(
    twin: str, session: SessionHandle, model: FakeUpstream
) -> None:
    model.script.append(Scripted(status=400, body=b'{"error": {"message": "too rude"}}'))
    with pytest.raises(InputInvalid, match="too rude"):
        call(f"{twin}rollout_step", ROW, session=session)


@both
def test_a_step_again_is_the_same_rollout(twin: str, session: SessionHandle) -> None:
    for _ in range(2):
        call(f"{twin}rollout_step", ROW, session=session, rollout_id="one")
    assert counts(session) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"example": {"id": 7}},
            r"no value for .* placeholder {request} in row 7 \(there are: id\)",
        ),
        (
            {"example": 7},
            "the row is 7; give one with fields for the prompt's placeholders: request",
        ),
        ({"example": ROW, "rollout_id": "a/b"}, "the rollout id 'a/b' is not usable in a URL"),
        ({"example": ROW, "session": ("session_id", "x")}, r"unmapped\(session\)"),
    ],
)
@both
def test_what_a_step_cannot_work_with_is_named(
    twin: str, arguments: dict[str, Any], sentence: str, session: SessionHandle
) -> None:
    with pytest.raises(InputInvalid, match=sentence):
        call(f"{twin}rollout_step", **({"session": session} | arguments))
    assert counts(session) == (0, 0)


def test_a_handle_without_a_prompt_asks_for_a_program(backend: EmbeddedBackend) -> None:
    bare = SessionHandle(session_id="bot", backend_url=backend.url)
    with pytest.raises(InputInvalid, match="bot has no prompt to fill; open the session"):
        rollout_step.fn(ROW, session=bare)


def told(report: RewardReport) -> dict[str, Sequence[str]]:
    return {outcome.value: ids for outcome, ids in report.rollout_ids.items() if ids}


@both
def test_rewards_come_later_by_result_or_by_id(twin: str, session: SessionHandle) -> None:
    results = [rollout_step.fn(ROW, session=session, rollout_id=f"r{n}") for n in range(4)]
    values = [1, (0.5, "late"), Judgement(score=0.0, expected="music"), Decimal("0.25")]
    report = call(f"{twin}report_rewards", session, list(zip(results, values, strict=True)))
    assert told(report) == {"accepted": ("r0", "r1", "r2", "r3")}
    again = call(f"{twin}report_rewards", session, {"r0": 1.0, "r1": 0.5})
    assert told(again) == {"repeated": ("r0", "r1")}
    assert counts(session) == (4, 4)


@both
def test_a_bad_reward_spoils_no_other(twin: str, session: SessionHandle) -> None:
    rollout_step.fn(ROW, session=session, rollout_id="good")
    report = call(
        f"{twin}report_rewards",
        session,
        [
            ("nan", float("nan")),
            (None, 1.0),
            ("high", 7.0),
            ("gone", 1.0),
            ("good", 1.0),
            ("good", 0.0),
            ("good", 1.0),
        ],
    )
    assert told(report) == {
        "accepted": ("good",),
        "repeated": ("good",),
        "conflicting": ("good",),
        "unknown": ("gone",),
        "invalid": ("nan", "None", "high"),
    }
    assert "give or return a finite number" in report.problems["nan"]
    assert "set prompt_learning.mipro.reward_range" in report.problems["high"]
    assert "has the reward 1 already, so 0 is not counted" in report.problems["good"]
    assert report.counts["accepted"] == report.accepted == 1
    assert report.settled == {"good"}
    assert counts(session) == (1, 1)


@both
def test_rewards_after_a_cancelled_session_are_too_late(twin: str, session: SessionHandle) -> None:
    rollout_step.fn(ROW, session=session, rollout_id="one")
    call("cancel_session", session)
    report = call(f"{twin}report_rewards", session, {"one": 1.0})
    assert told(report) == {RewardOutcome.TOO_LATE: ("one",)}


@both
def test_no_rewards_are_no_work(twin: str, session: SessionHandle) -> None:
    assert told(call(f"{twin}report_rewards", session, {})) == {}


def test_an_unknown_session_ends_the_report(backend: EmbeddedBackend) -> None:
    nobody = SessionHandle(session_id="nobody", backend_url=backend.url)
    with pytest.raises(SessionNotFound):
        report_rewards.fn(nobody, {"one": 1.0})


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        (zip(["a"], [1.0], strict=True), r"of type zip; .* or a list of pairs, .* list\(zip\("),
        ("abc", "of type str"),
        ([("a", 1.0), ("b", 1.0, "?")], r"rewards\[1\] is \('b', 1.0, '\?'\); give a pair"),
    ],
)
def test_rewards_in_another_form_are_refused(
    rewards: Any, sentence: str, session: SessionHandle
) -> None:
    with pytest.raises(InputInvalid, match=sentence):
        report_rewards.fn(session, rewards)


def test_what_travels_between_processes_has_neither_key_nor_connection(
    backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = call("open_session", config(), session_id=new_id(), backend_url=backend.url)
    result = rollout_step.fn(ROW, session=session)
    travellers = [
        session,
        RolloutJob.of(ROW, "one"),
        result,
        report_rewards.fn(session, [(result, 1.0)]),
    ]
    packed = cloudpickle.dumps(travellers)
    assert backend.api_key.get_secret_value().encode() not in packed
    assert cloudpickle.loads(packed) == travellers


@pytest.mark.parametrize("name", ["rollout_step", "arollout_step", "report_rewards"])
def test_a_task_travels_to_other_processes(name: str) -> None:
    assert cloudpickle.dumps(getattr(tasks, name).fn)


@both
def test_a_program_may_ask_with_the_sessions_own_prompt(
    twin: str, session: SessionHandle, model: FakeUpstream
) -> None:
    program = AsyncLiveRollout.ask if twin else LiveRollout.ask
    jobs = [RolloutJob.of(row, f"r{number}") for number, row in enumerate([ROW, ROW])]
    results = call(
        f"{twin}run_rollouts", jobs, session=session, program=program, reward=None, max_workers=2
    )
    assert [result.outcome for result in results] == [RolloutOutcome.UNREWARDED] * 2
    assert model.requests[-1]["messages"][0] == {"role": "system", "content": SYSTEM}
    assert counts(session) == (2, 0)
