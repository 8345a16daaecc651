"""A rollout as a `with` block: one reward at its end, whatever happens in it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import (
    InputInvalid,
    NotFound,
    RewardConflict,
    RewardInvalid,
    SessionNotFound,
)
from prefect_mipro.models.summaries import RolloutOutcome, RolloutResult
from prefect_mipro.tasks import (
    AsyncOpenRollout,
    LiveRollout,
    OpenRollout,
    SessionHandle,
    evaluate_candidate,
    report_reward,
    session_status,
)
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import SYSTEM

MESSAGES = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "play jazz #music"},
]
EXAMPLE = {"id": 7, "label": "music"}


def exact(example: dict[str, Any], answer: str) -> float:
    return float(answer == example["label"])


def rewards(session: SessionHandle) -> tuple[int, float | None]:
    status = session_status.fn(session)
    baseline = status.candidates[status.baseline_candidate_id]
    return status.reward_count, baseline.avg_reward


def run(
    session: SessionHandle, body: Callable[[OpenRollout], object] | None = None, **options: Any
) -> OpenRollout:
    """A rollout with one call of the model, and then the body."""
    with session.rollout(**options) as rollout:
        rollout.complete(MESSAGES)
        if body:
            body(rollout)
    return rollout


def fail(_rollout: OpenRollout) -> None:
    raise ZeroDivisionError


def test_a_reward_is_reported_at_the_end_of_the_block(session: SessionHandle) -> None:
    with session.rollout(example_id=7) as rollout:
        rollout.complete(MESSAGES)
        rollout.reward(0.5, "so so")
        assert rewards(session) == (0, None)
    assert rewards(session) == (1, 0.5)
    result: RolloutResult = rollout.result
    assert (result.outcome, result.score, result.example_id) == ("rewarded", 0.5, "7")


def test_a_coroutine_has_the_same_block(session: SessionHandle) -> None:
    async def exactly(example: dict[str, Any], answer: str) -> float:
        return exact(example, answer)

    async def arun() -> AsyncOpenRollout:
        async with session.rollout(EXAMPLE, metric=exactly) as rollout:
            await rollout.complete(MESSAGES)
            rollout.answer = "music"
        return rollout

    assert asyncio.run(arun()).result.outcome is RolloutOutcome.REWARDED
    assert rewards(session) == (1, 1.0)


def test_a_metric_judges_the_answer(session: SessionHandle) -> None:
    with session.rollout(EXAMPLE, metric=exact) as rollout:
        rollout.complete(MESSAGES)
        rollout.answer = "music"
    assert (rollout.result.answer, rollout.result.score) == ("music", 1.0)
    assert rewards(session) == (1, 1.0)


def test_a_reward_of_the_body_spares_the_metric(session: SessionHandle) -> None:
    with session.rollout(EXAMPLE, metric=exact) as rollout:
        rollout.complete(MESSAGES)
        rollout.reward(0.25)
    assert rewards(session) == (1, 0.25)


def test_without_a_reward_it_may_come_later(session: SessionHandle) -> None:
    rollout = run(session)
    assert rollout.result.outcome is RolloutOutcome.UNREWARDED
    report_reward.fn(session, 1.0, rollout_id=rollout.rollout_id)
    assert rewards(session) == (1, 1.0)


@pytest.mark.parametrize(
    ("on_error", "expected"), [("no_reward", (0, None)), ("raise", (0, None)), (0.1, (1, 0.1))]
)
def test_a_body_that_raises_is_worth_what_on_error_says(
    on_error: Any, expected: tuple[int, float | None], session: SessionHandle
) -> None:
    with pytest.raises(ZeroDivisionError):
        run(session, fail, example=EXAMPLE, metric=exact, on_error=on_error)
    assert rewards(session) == expected


def test_a_coroutine_that_raises_is_worth_what_on_error_says(session: SessionHandle) -> None:
    async def arun() -> None:
        async with session.rollout(on_error=0.0) as rollout:
            await rollout.complete(MESSAGES)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(arun())
    assert rewards(session) == (1, 0.0)


def test_a_reward_that_was_given_before_the_body_raised_counts(session: SessionHandle) -> None:
    seen = []

    def judge_and_fail(rollout: OpenRollout) -> None:
        seen.append(rollout)
        rollout.reward(1.0)
        raise ZeroDivisionError("no such thing")

    with pytest.raises(ZeroDivisionError):
        run(session, judge_and_fail, on_error=0.0)
    assert rewards(session) == (1, 1.0)
    result = seen[0].result
    assert (result.outcome, result.score) == (RolloutOutcome.FAILED, 1.0)
    assert result.error == "ZeroDivisionError: no such thing"


@pytest.mark.parametrize(
    "error",
    [
        # The body was interrupted,
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        # or met what every other prompt would have met.
        NotFound("no such table"),
    ],
    ids=repr,
)
def test_what_is_not_the_fault_of_the_prompt_is_no_failure_of_it(
    error: BaseException, session: SessionHandle
) -> None:
    def interrupted(_rollout: OpenRollout) -> None:
        raise error

    with pytest.raises(type(error)):
        run(session, interrupted, on_error=0.0)
    assert rewards(session) == (0, None)


def test_the_error_of_the_body_goes_before_one_of_its_report(backend: EmbeddedBackend) -> None:
    unknown = SessionHandle(session_id="unknown", backend_url=backend.url)
    with pytest.raises(ZeroDivisionError), unknown.rollout(on_error=0.0):
        raise ZeroDivisionError


def test_a_reward_that_cannot_be_reported_is_an_error(backend: EmbeddedBackend) -> None:
    unknown = SessionHandle(session_id="unknown", backend_url=backend.url)
    with pytest.raises(SessionNotFound), unknown.rollout() as rollout:
        rollout.reward(1.0)


def test_a_rollout_is_rewarded_once(session: SessionHandle) -> None:
    with session.rollout() as rollout:
        rollout.complete(MESSAGES)
        rollout.reward(1.0)
        rollout.reward(1.0)
        with pytest.raises(RewardConflict, match="has the reward 1 already, so 0 is not counted"):
            rollout.reward(0.0)
    with pytest.raises(InputInvalid, match=r"has ended, so 0\.5 is not counted"):
        rollout.reward(0.5)
    with session.rollout(rollout_id=rollout.rollout_id) as again:
        again.reward(0.0)
    assert again.result.outcome is RolloutOutcome.REPEATED
    assert rewards(session) == (1, 1.0)


def test_a_block_is_for_one_rollout(session: SessionHandle) -> None:
    block = session.rollout()
    with block:
        pass
    with pytest.raises(InputInvalid, match=r"has begun already; call session\.rollout\(\)"), block:
        pass


async def amatch(_example: Any, _answer: Any) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("options", "answer", "sentence"),
    [
        ({"metric": exact}, None, r"no answer of rollout .* to judge; set rollout\.answer"),
        ({"metric": lambda _example, _answer: None}, "x", "the reward is None; give or return"),
        ({"metric": amatch}, "x", "the metric is a coroutine function; use it in an `async with`"),
    ],
)
def test_a_metric_that_does_not_judge_is_named(
    options: dict[str, Any], answer: str | None, sentence: str, session: SessionHandle
) -> None:
    def answers(rollout: OpenRollout) -> None:
        if answer:
            rollout.answer = answer

    with pytest.raises(RewardInvalid, match=sentence):
        run(session, answers, on_error=0.0, **options)
    assert rewards(session) == (0, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metric": "accuracy"}, "the metric is 'accuracy'; give a function"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; give \"no_reward\", or"),
        ({"on_error": float("nan")}, "on_error is nan"),
    ],
)
def test_an_option_that_is_none_is_named_before_a_model_is_asked(
    options: dict[str, Any], sentence: str, session: SessionHandle
) -> None:
    with pytest.raises(InputInvalid, match=sentence):
        session.rollout(**options)


def test_the_official_client_is_ready(session: SessionHandle, model: FakeUpstream) -> None:
    with session.rollout(rollout_id="one", example_id=7) as rollout:
        client = rollout.openai()
        answer = client.chat.completions.create(model="small", messages=MESSAGES)  # type: ignore[arg-type]
        rollout.reward(1.0)
    assert answer.choices[0].message.content in ("music", "no idea")
    assert client.is_closed()
    assert rewards(session) == (1, 1.0)


def test_the_official_client_is_ready_in_coroutines(session: SessionHandle) -> None:
    async def arun() -> bool:
        async with session.rollout() as rollout:
            client = rollout.openai()
            await client.chat.completions.create(model="small", messages=MESSAGES)  # type: ignore[arg-type]
            rollout.reward(1.0)
        return client.is_closed()

    assert asyncio.run(arun())
    assert rewards(session) == (1, 1.0)


def test_the_official_client_of_an_evaluation_names_its_candidate(session: SessionHandle) -> None:
    def program(rollout: LiveRollout, row: dict[str, Any]) -> str:
        chat = rollout.openai().chat.completions
        return str(chat.create(model="small", messages=rollout.messages(row)))  # type: ignore[arg-type]

    candidate_id = session_status.fn(session).baseline_candidate_id
    evaluation = evaluate_candidate.fn(
        [{"request": "play jazz #music"}],
        session=session,
        candidate_id=candidate_id,
        program=program,
        reward=lambda _row, _answer: 1.0,
    )
    assert (evaluation.mean_reward, evaluation.failures) == (1.0, 0)
    assert session_status.fn(session).rollout_count == 0


def test_a_missing_package_is_named_with_the_way_around_it(
    session: SessionHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with (
        session.rollout() as rollout,
        pytest.raises(ModuleNotFoundError, match=r"pip install openai\. rollout\.complete"),
    ):
        rollout.openai()


def test_a_block_travels_and_an_open_rollout_does_not(
    session: SessionHandle, backend: EmbeddedBackend
) -> None:
    packed = cloudpickle.dumps(session.rollout(EXAMPLE, rollout_id="one"))
    assert backend.api_key.get_secret_value().encode() not in packed
    with cloudpickle.loads(packed) as rollout:
        assert rollout.rollout_id == "one"
        with pytest.raises(TypeError, match=r"return its answer, or rollout\.result"):
            cloudpickle.dumps(rollout)
