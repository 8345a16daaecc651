"""Rollouts against a real backend: programs, rewards, failures, and held-out evaluations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from prefect_mipro import tasks
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import (
    AnswerInvalid,
    KeyRejected,
    ModelMissing,
    NotFound,
    RewardInvalid,
    SessionNotFound,
    UpstreamFailed,
)
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.models.summaries import Evaluation, RolloutOutcome, RolloutResult
from prefect_mipro.tasks import AsyncLiveRollout, Judgement, LiveRollout, RolloutJob, SessionHandle
from prefect_mipro.tasks.live_rollouts import _text
from prefect_mipro.tasks.requests import reward_request
from tests.fake_upstream import FakeUpstream, Scripted
from tests.plugin.conftest import SYSTEM, config, new_id
from tests.plugin.twins import both as twins
from tests.plugin.twins import call

Row = dict[str, Any]
ROW: Row = {"id": "utterance-7", "text": "play jazz", "label": "music"}


def messages_of(row: Row) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{row['text']} #{row['label']}"},
    ]


def classify(rollout: LiveRollout, row: Row) -> str:
    return rollout.complete(messages_of(row))


async def aclassify(rollout: AsyncLiveRollout, row: Row) -> str:
    return await rollout.complete(messages_of(row))


def exact(row: Row, answer: str) -> float:
    return float(answer == row["label"])


def broken(_rollout: LiveRollout, _row: Row) -> str:
    raise ZeroDivisionError("no such thing")


async def abroken(_rollout: AsyncLiveRollout, _row: Row) -> str:
    raise ZeroDivisionError("no such thing")


def run(session: SessionHandle, **changes: Any) -> RolloutResult:
    arguments: dict[str, Any] = {"session": session, "program": classify, "reward": exact} | changes
    return tasks.run_rollout.fn(ROW, **arguments)


def arun(session: SessionHandle, **changes: Any) -> RolloutResult:
    arguments: dict[str, Any] = {
        "session": session,
        "program": aclassify,
        "reward": exact,
    } | changes
    return asyncio.run(tasks.arun_rollout.fn(ROW, **arguments))


def status_of(session: SessionHandle) -> SessionStatus:
    return tasks.session_status.fn(session)


Run = Callable[..., RolloutResult]
both = pytest.mark.parametrize("run", [run, arun], ids=["sync", "async"])
both_failing = pytest.mark.parametrize(
    ("run", "program"), [(run, broken), (arun, abroken)], ids=["sync", "async"]
)


@both
def test_a_rollout_is_answered_judged_and_rewarded(run: Run, session: SessionHandle) -> None:
    result = run(session, reward=lambda _row, _answer: 0.75, rollout_id="one")
    assert result.outcome is RolloutOutcome.REWARDED
    assert (result.rollout_id, result.example_id, result.score) == ("one", "utterance-7", 0.75)
    status = status_of(session)
    assert result.candidate_id == status.baseline_candidate_id
    assert (status.rollout_count, status.reward_count) == (1, 1)


@both
def test_a_reward_may_come_later(run: Run, session: SessionHandle) -> None:
    result = run(session, reward=None, rollout_id="one")
    assert (result.outcome, result.score) == (RolloutOutcome.UNREWARDED, None)
    receipt = tasks.report_reward.fn(session, 1.0, rollout_id="one")
    assert receipt.candidate_id == status_of(session).baseline_candidate_id


@both
def test_the_answer_comes_back(run: Run, session: SessionHandle) -> None:
    assert run(session).answer in ("music", "no idea")


@both
def test_the_same_rollout_again_counts_once(run: Run, session: SessionHandle) -> None:
    results = [run(session, rollout_id="one") for _ in range(2)]
    assert [result.outcome for result in results] == ["rewarded", "repeated"]
    assert status_of(session).reward_count == 1


@both
def test_another_score_for_the_same_rollout_does_not_count(
    run: Run, session: SessionHandle
) -> None:
    scores = iter([1.0, 0.0])
    outcomes = [
        run(session, rollout_id="one", reward=lambda _row, _answer: next(scores)).outcome
        for _ in range(2)
    ]
    assert outcomes == ["rewarded", "repeated"]
    assert status_of(session).best_reward is not None


@both
def test_without_an_id_each_rollout_is_another(run: Run, session: SessionHandle) -> None:
    assert run(session).rollout_id != run(session).rollout_id
    assert status_of(session).reward_count == 2


@both_failing
def test_a_failure_gives_no_reward(run: Run, program: Any, session: SessionHandle) -> None:
    result = run(session, program=program)
    assert result.outcome is RolloutOutcome.FAILED
    assert result.error == "ZeroDivisionError: no such thing"
    assert status_of(session).reward_count == 0


@both_failing
def test_a_failure_can_be_worth_a_score(run: Run, program: Any, session: SessionHandle) -> None:
    result = run(session, program=program, on_error=0.25)
    assert (result.outcome, result.score) == (RolloutOutcome.FAILED, 0.25)


@both_failing
def test_a_failure_can_end_the_task(run: Run, program: Any, session: SessionHandle) -> None:
    with pytest.raises(ZeroDivisionError):
        run(session, program=program, on_error="raise")


@both
def test_a_reward_function_that_raises_is_a_failure_too(run: Run, session: SessionHandle) -> None:
    def judge(_row: Row, _answer: str) -> float:
        raise TimeoutError("the judge sleeps")

    assert run(session, reward=judge).error == "TimeoutError: the judge sleeps"


@pytest.mark.parametrize(
    "error", [KeyRejected("x"), ModelMissing("x"), NotFound("x")], ids=lambda e: type(e).__name__
)
def test_what_the_next_rollout_would_meet_too_ends_the_task(
    error: Exception, session: SessionHandle
) -> None:
    def program(_rollout: LiveRollout, _row: Row) -> str:
        raise error

    with pytest.raises(type(error)):
        run(session, program=program)


@both
@pytest.mark.parametrize(("value", "problem"), [(None, "is None; give or return"), (7.0, "_range")])
def test_a_reward_that_cannot_count_fails_its_rollout(
    run: Run, value: Any, problem: str, session: SessionHandle
) -> None:
    result = run(session, reward=lambda _row, _answer: value)
    assert (result.outcome, result.score) == (RolloutOutcome.FAILED, None)
    assert "RewardInvalid" in result.error
    assert problem in result.error
    assert status_of(session).reward_count == 0


@both
@pytest.mark.parametrize("value", [float("nan"), 7.0])
def test_a_reward_that_cannot_count_is_worth_what_on_error_says(
    run: Run, value: float, session: SessionHandle
) -> None:
    with pytest.raises(RewardInvalid):
        run(session, reward=lambda _row, _answer: value, on_error="raise")
    result = run(session, reward=lambda _row, _answer: value, on_error=0.25)
    assert (result.outcome, result.score) == (RolloutOutcome.FAILED, 0.25)
    assert status_of(session).reward_count == 1


@both_failing
def test_a_score_for_failures_beyond_the_range_is_told(
    run: Run, program: Any, session: SessionHandle
) -> None:
    result = run(session, program=program, on_error=-1.0)
    assert (result.outcome, result.score) == (RolloutOutcome.FAILED, None)
    assert "the score -1.0 is outside [0.0, 1.0]" in result.error


def test_a_reward_for_a_cancelled_session_comes_too_late(session: SessionHandle) -> None:
    def cancelling(row: Row, answer: str) -> float:
        tasks.cancel_session.fn(session)
        return exact(row, answer)

    assert run(session, reward=cancelling).outcome is RolloutOutcome.TOO_LATE


def test_the_last_reward_can_end_the_session(session: SessionHandle) -> None:
    run(session, stop=True)
    assert status_of(session).status == "succeeded"


def test_an_async_reward_function_is_awaited(session: SessionHandle) -> None:
    async def judge(row: Row, answer: str) -> float:
        await asyncio.sleep(0)
        return 1.0

    assert arun(session, reward=judge).score == 1.0


def test_the_example_travels_with_the_reward(session: SessionHandle) -> None:
    run(session, example_id="4")
    (item,) = tasks.list_seed_evals.fn(session)["items"]
    assert item["seed"] == 4


def test_the_expected_answer_travels_as_metadata(session: SessionHandle) -> None:
    judged = Judgement(score=0.0, expected="music", metadata={"turns": 2})
    request = reward_request(session, judged, "one")
    assert request.metadata == {"turns": 2, "expected": "music"}


def test_any_openai_client_reaches_the_proxy(session: SessionHandle) -> None:
    def program(rollout: LiveRollout, row: Row) -> str:
        with OpenAI(
            base_url=rollout.base_url,
            api_key=rollout.api_key,
            default_headers=rollout.headers,
            max_retries=0,
        ) as client:
            answer: Any = client.chat.completions.create(
                model="small",
                messages=messages_of(row),  # type: ignore[arg-type]
            )
            return str(answer.choices[0].message.content)

    assert run(session, program=program).outcome is RolloutOutcome.REWARDED


def test_any_async_openai_client_reaches_the_proxy(session: SessionHandle) -> None:
    async def program(rollout: AsyncLiveRollout, row: Row) -> str:
        async with AsyncOpenAI(
            base_url=rollout.base_url,
            api_key=rollout.api_key,
            default_headers=rollout.headers,
            max_retries=0,
        ) as client:
            answer: Any = await client.chat.completions.create(
                model="small",
                messages=messages_of(row),  # type: ignore[arg-type]
            )
            return str(answer.choices[0].message.content)

    assert arun(session, program=program).outcome is RolloutOutcome.REWARDED


def test_parameters_of_the_call_reach_the_model(
    session: SessionHandle, model: FakeUpstream
) -> None:
    def program(rollout: LiveRollout, row: Row) -> str:
        return rollout.complete(messages_of(row), max_tokens=7, stop=["\n"])

    run(session, program=program)
    assert (model.requests[-1]["max_tokens"], model.requests[-1]["stop"]) == (7, ["\n"])


def test_an_error_of_the_model_is_raised_as_ours(
    session: SessionHandle, model: FakeUpstream
) -> None:
    model.script.append(Scripted(status=400, body=b'{"error": {"message": "too long"}}'))
    seen: list[Exception] = []

    def program(rollout: LiveRollout, row: Row) -> str:
        try:
            return classify(rollout, row)
        except Exception as error:
            seen.append(error)
            raise

    assert run(session, program=program).outcome is RolloutOutcome.FAILED
    assert "too long" in str(seen[0])


def test_an_answer_that_only_calls_tools_has_no_text() -> None:
    called: dict[str, Any] = {
        "choices": [{"message": {"role": "assistant", "content": None, "tool_calls": []}}]
    }
    assert _text(called) == ""


def test_an_answer_that_is_no_completion_is_refused() -> None:
    with pytest.raises(AnswerInvalid, match="its keys are id"):
        _text({"id": 1})


def test_a_rollout_does_not_show_its_key(session: SessionHandle, backend: EmbeddedBackend) -> None:
    shown: list[str] = []

    def program(rollout: LiveRollout, row: Row) -> str:
        shown.append(f"{rollout!r} {rollout}")
        return classify(rollout, row)

    run(session, program=program)
    assert backend.api_key.get_secret_value() not in shown[0]


def test_ids_that_no_header_can_carry_are_left_out_of_the_headers(session: SessionHandle) -> None:
    seen: list[dict[str, str]] = []

    def program(rollout: LiveRollout, row: Row) -> str:
        seen.append(rollout.headers)
        return classify(rollout, row)

    result = run(session, program=program, example_id="größe\n")
    assert "x-mipro-example-id" not in seen[0]
    assert result.outcome is RolloutOutcome.REWARDED


def jobs(count: int) -> list[RolloutJob]:
    return [RolloutJob.of({**ROW, "id": str(n)}, f"job-{n}") for n in range(count)]


def test_several_rollouts_in_one_task_come_back_in_order(session: SessionHandle) -> None:
    results = tasks.run_rollouts.fn(
        jobs(12), session=session, program=classify, reward=exact, max_workers=4
    )
    assert [result.rollout_id for result in results] == [f"job-{n}" for n in range(12)]
    assert status_of(session).reward_count == 12


def test_several_async_rollouts_in_one_task_come_back_in_order(session: SessionHandle) -> None:
    results = asyncio.run(
        tasks.arun_rollouts.fn(
            jobs(12), session=session, program=aclassify, reward=exact, max_workers=4
        )
    )
    assert [result.rollout_id for result in results] == [f"job-{n}" for n in range(12)]


def test_a_task_runs_as_many_rollouts_at_a_time_as_it_was_told(session: SessionHandle) -> None:
    together = threading.Barrier(3, timeout=30)
    active, most, lock = 0, 0, threading.Lock()

    def program(rollout: LiveRollout, row: Row) -> str:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        together.wait()
        with lock:
            active -= 1
        return classify(rollout, row)

    tasks.run_rollouts.fn(jobs(9), session=session, program=program, reward=exact, max_workers=3)
    assert most == 3


def test_the_first_error_that_is_to_be_raised_ends_the_task(session: SessionHandle) -> None:
    ran: list[str] = []

    def program(_rollout: LiveRollout, row: Row) -> str:
        ran.append(row["id"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tasks.run_rollouts.fn(
            jobs(50),
            session=session,
            program=program,
            reward=exact,
            on_error="raise",
            max_workers=1,
        )
    assert len(ran) < 50


@pytest.mark.parametrize("name", ["run_rollouts", "evaluate_candidate"])
@twins
def test_nothing_to_run_gives_nothing(twin: str, name: str, session: SessionHandle) -> None:
    asked = {"candidate_id": "none"} if name == "evaluate_candidate" else {}
    result = call(f"{twin}{name}", [], session=session, program=classify, reward=exact, **asked)
    assert result == [] or result.examples == 0


@twins
def test_in_an_evaluation_a_score_that_cannot_count_is_a_failure(
    twin: str, session: SessionHandle
) -> None:
    scores = iter([1.0000000000000002, 1.2, None])
    evaluation: Evaluation = call(
        f"{twin}evaluate_candidate",
        [ROW] * 3,
        session=session,
        candidate_id=status_of(session).baseline_candidate_id,
        program=aclassify if twin else classify,
        reward=lambda _row, _answer: next(scores),
        max_workers=1,
    )
    assert evaluation.failures == 2
    assert evaluation.mean_reward == pytest.approx(1 / 3)


def test_the_first_error_cancels_async_rollouts(session: SessionHandle) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(
            tasks.arun_rollouts.fn(
                jobs(20), session=session, program=abroken, reward=exact, on_error="raise"
            )
        )


def test_an_evaluation_is_not_learned_from(session: SessionHandle) -> None:
    run(session)
    before = status_of(session)
    evaluation = tasks.evaluate_candidate.fn(
        [ROW] * 10,
        session=session,
        candidate_id=before.baseline_candidate_id,
        program=classify,
        reward=lambda _row, _answer: 1.0,
    )
    after = status_of(session)
    assert (evaluation.examples, evaluation.mean_reward, evaluation.failures) == (10, 1.0, 0)
    assert (after.rollout_count, after.reward_count) == (1, 1)


def test_an_async_evaluation_gives_the_same(session: SessionHandle) -> None:
    baseline_id = status_of(session).baseline_candidate_id
    one = tasks.evaluate_candidate.fn(
        [ROW] * 4, session=session, candidate_id=baseline_id, program=classify, reward=exact
    )
    other = asyncio.run(
        tasks.aevaluate_candidate.fn(
            [ROW] * 4, session=session, candidate_id=baseline_id, program=aclassify, reward=exact
        )
    )
    assert one == other


def test_an_evaluation_uses_the_prompt_of_its_candidate(
    session: SessionHandle, model: FakeUpstream
) -> None:
    added = tasks.add_candidate.fn(session, "Answer with one label.")
    tasks.evaluate_candidate.fn(
        [ROW],
        session=session,
        candidate_id=added["candidate_id"],
        program=classify,
        reward=exact,
    )
    assert model.requests[-1]["messages"][0]["content"] == "Answer with one label."


def test_what_fails_in_an_evaluation_counts_as_nothing(session: SessionHandle) -> None:
    def sometimes(rollout: LiveRollout, row: Row) -> str:
        if row["id"] == "bad":
            raise UpstreamFailed("x")
        return classify(rollout, row)

    evaluation = tasks.evaluate_candidate.fn(
        [ROW, {**ROW, "id": "bad"}],
        session=session,
        candidate_id=status_of(session).baseline_candidate_id,
        program=sometimes,
        reward=lambda _row, _answer: 1.0,
    )
    assert (evaluation.mean_reward, evaluation.failures) == (0.5, 1)


def test_an_evaluation_scales_scores_to_the_range_of_rewards(session: SessionHandle) -> None:
    evaluation = tasks.evaluate_candidate.fn(
        [ROW],
        session=session,
        candidate_id=status_of(session).baseline_candidate_id,
        program=classify,
        reward=lambda _row, _answer: 5.0,
        reward_range=(0.0, 10.0),
    )
    assert evaluation.mean_reward == 0.5


def test_a_rollout_of_an_unknown_session_ends_the_task(backend: EmbeddedBackend) -> None:
    with pytest.raises(SessionNotFound):
        run(SessionHandle(session_id="nobody", backend_url=backend.url))


def test_the_correlation_id_travels_with_calls_and_rewards(backend: EmbeddedBackend) -> None:
    session = tasks.create_session.fn(
        config(), session_id=new_id(), backend_url=backend.url, correlation_id="run-7"
    )
    seen: list[dict[str, str]] = []

    def program(rollout: LiveRollout, row: Row) -> str:
        seen.append(rollout.headers)
        return classify(rollout, row)

    run(session, program=program)
    assert seen[0]["x-correlation-id"] == "run-7"
