"""Failed calls are evidence: candidates that fail lose their traffic, and callers get an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from prefect_mipro.errors import UpstreamTimedOut
from prefect_mipro.models.candidates import DuelState
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.services.calls import Call
from tests.fake_upstream import completion_of
from tests.server.services.conftest import Answer, Backend

LONG = "You classify queries. " + "Think of every case that there may be. " * 20
REFUSAL = Answer(
    b'{"error": {"message": "the context is full", "code": "context_length_exceeded"}}', status=400
)
STREAMED: ChatBody = {
    "model": "m",
    "stream": True,
    "messages": [
        {"role": "system", "content": "You classify queries."},
        {"role": "user", "content": "Query: hi"},
    ],
}
ALWAYS = 2_000


def length(body: ChatBody) -> int:
    return sum(len(message["content"]) for message in body["messages"])


def fail_when_long(backend: Backend, failure: Answer | Exception, *, every: int = 1) -> None:
    """One in `every` long prompts fails."""
    long_ones = 0

    def answer(body: ChatBody) -> str | Answer | Exception:
        nonlocal long_ones
        if length(body) < len(LONG):
            return "ok"
        long_ones += 1
        return "ok" if long_ones % every else failure

    backend.model.answer = answer


def spoilt(content: str | None, finish_reason: str) -> Answer:
    choice = {"index": 0, "message": {"content": content}, "finish_reason": finish_reason}
    return Answer(json.dumps(completion_of("") | {"choices": [choice]}).encode())


async def with_long_candidate(backend: Backend, **config: Any) -> str:
    await backend.create(online_proposer_mode="off", **config)
    added = await backend.sessions.add_candidate("s", instruction=LONG)
    return str(added["candidate_id"])


async def run(
    backend: Backend, first: int, last: int, *, score: Callable[[str], float] | None = None
) -> list[str]:
    """Rollouts one by one: who answered each, or nothing where the call failed."""
    answered = []
    for number in range(first, last):
        try:
            candidate_id, answer = await backend.call(f"r{number}")
        except UpstreamTimedOut:
            candidate_id, answer = "", {}
        good = bool(answer.get("choices")) and bool(answer["choices"][0]["message"]["content"])
        answered.append(candidate_id if good else "")
        if good and score is not None:
            await backend.reward(f"r{number}", score(candidate_id))
        await backend.checks.settle()
    return answered


@pytest.mark.parametrize(
    "failure",
    [
        REFUSAL,
        Answer(b'{"error": {"message": "your input was flagged"}}', status=403),
        spoilt("", "content_filter"),
        spoilt("", "stop"),
        spoilt(None, "length"),
    ],
    ids=["refused", "moderated", "filtered", "empty", "cut"],
)
async def test_a_candidate_whose_calls_fail_loses_its_traffic(
    backend: Backend, failure: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    long_id = await with_long_candidate(backend, fallback_to_champion=False)
    fail_when_long(backend, failure)
    answered = await run(backend, 0, 60)
    assert 1 <= answered.count("") <= 8
    status = await backend.sessions.status("s")
    report = status.candidates[long_id]
    assert report.status == "retired"
    assert "candidate_retired" in caplog.text
    (event,) = [
        event
        for event in await backend.store.events("s", since=0, limit=ALWAYS)
        if event.event_type == "mipro.candidate.retired"
    ]
    assert "its prompt fails more often than the baseline" in event.message


@pytest.mark.parametrize(("limit", "failures"), [(None, 20), (256, 20), (4, 0)])
async def test_a_cut_answer_counts_unless_a_label_was_asked_for(
    backend: Backend, limit: int | None, failures: int
) -> None:
    await backend.create()
    backend.model.answer = lambda _: spoilt("half an answ", "length")
    body: ChatBody = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You classify queries."},
            {"role": "user", "content": "Query: hi"},
        ],
    }
    if limit is not None:
        body["max_tokens"] = limit
    for number in range(20):
        await backend.call(f"r{number}", body=body)
    await backend.journal.flush()
    assert (await backend.store.learning_facts("s")).failures.total == failures


@pytest.mark.parametrize(
    "failure",
    [
        Answer(b'{"error": {"message": "busy"}}', status=503),
        Answer(b'{"error": {"message": "slow down"}}', status=429),
        Answer(b'{"error": {"message": "no such key"}}', status=401),
        UpstreamTimedOut("too slow"),
    ],
    ids=["busy", "limited", "key", "time-out"],
)
async def test_an_outage_says_nothing_even_if_it_hits_one_candidate_alone(
    backend: Backend, failure: Answer | Exception
) -> None:
    long_id = await with_long_candidate(backend)
    fail_when_long(backend, failure)
    await run(backend, 0, 40)
    status = await backend.sessions.status("s")
    report = status.candidates[long_id]
    assert report.status != "retired"
    assert report.failed_calls > 0


async def test_failures_that_hit_the_baseline_as_often_retire_nobody(backend: Backend) -> None:
    long_id = await with_long_candidate(backend)
    calls = 0

    def answer(body: ChatBody) -> str | Answer:
        nonlocal calls
        calls += 1
        return "ok" if calls % 3 else REFUSAL

    backend.model.answer = answer
    await run(backend, 0, 80, score=lambda _: 1.0)
    assert (await backend.sessions.status("s")).candidates[long_id].status != "retired"


async def test_a_prompt_that_was_not_applied_is_not_to_blame(backend: Backend) -> None:
    await with_long_candidate(backend)
    backend.model.answer = lambda _: REFUSAL
    body = {"model": "m", "messages": [{"role": "user", "content": "something else"}]}
    for number in range(20):
        await backend.call(f"r{number}", body=body)
    await backend.journal.flush()
    assert (await backend.store.learning_facts("s")).failures.total == 0


async def test_a_challenger_that_fails_on_some_inputs_does_not_win_by_the_others(
    backend: Backend,
) -> None:
    long_id = await with_long_candidate(
        backend, fallback_to_champion=False, promotion={"min_rewards": 20}
    )
    first = 0
    while await backend.store.duel("s") is None:
        await run(backend, first, first + 1, score=lambda i: float(i == long_id))
        first += 1
    fail_when_long(backend, REFUSAL, every=3)
    await run(backend, first, first + 60, score=lambda i: 0.5 + 0.5 * (i == long_id))
    status = await backend.sessions.status("s")
    assert status.champion_candidate_id == status.baseline_candidate_id
    assert status.candidates[long_id].status == "retired"
    duel = await backend.store.duel("s")
    assert duel is not None
    assert duel.state is DuelState.ABANDONED


async def test_a_champion_that_begins_to_fail_gives_way_to_the_baseline(backend: Backend) -> None:
    long_id = await with_long_candidate(backend)
    await backend.sessions.promote("s", long_id, reason="asked")
    fail_when_long(backend, REFUSAL)
    answered = await run(backend, 0, 100)
    assert "" not in answered
    status = await backend.sessions.status("s")
    assert status.champion_candidate_id == status.baseline_candidate_id
    assert status.candidates[long_id].status == "retired"


@pytest.mark.parametrize("failure", [REFUSAL, spoilt("", "content_filter")], ids=["4xx", "filter"])
async def test_a_refused_call_is_answered_with_the_champions_prompt(
    backend: Backend, failure: Answer
) -> None:
    long_id = await with_long_candidate(backend, selection={"exploration": "bold"})
    fail_when_long(backend, failure)
    answered = await run(backend, 0, 40, score=lambda _: 1.0)
    status = await backend.sessions.status("s")
    assert set(answered) == {status.baseline_candidate_id}
    report, baseline = status.candidates[long_id], status.candidates[answered[0]]
    assert report.rollout_count == 0
    assert report.failures > 0
    assert (baseline.rollout_count, baseline.reward_count) == (40, 40)


async def test_a_streamed_call_falls_back_before_its_first_byte(backend: Backend) -> None:
    long_id = await with_long_candidate(backend)
    fail_when_long(backend, REFUSAL)
    session = await backend.store.session("s")
    fallen = None
    for number in range(20):
        call = Call(STREAMED, rollout_id=f"r{number}")
        async with backend.serving.serve(session, call) as served:
            passed = b"".join([chunk async for chunk in served.chunks()])
        assert passed.endswith(b"data: [DONE]\n\n")
        fallen = fallen or served.failed_candidate_id
    assert fallen == long_id


async def test_a_stream_without_events_is_no_better_than_the_refusal(backend: Backend) -> None:
    long_id = await with_long_candidate(backend)
    backend.model.answer = lambda body: (
        REFUSAL if length(body) >= len(LONG) else Answer(b"", content_type="text/event-stream")
    )
    session = await backend.store.session("s")
    statuses = {}
    for number in range(20):
        call = Call(STREAMED, rollout_id=f"r{number}")
        async with backend.serving.serve(session, call) as served:
            statuses[served.candidate_id] = served.status
    assert statuses[long_id] == REFUSAL.status


async def test_later_calls_of_the_rollout_go_on_with_the_champion(backend: Backend) -> None:
    long_id = await with_long_candidate(backend)
    fail_when_long(backend, REFUSAL)
    await run(backend, 0, 20)
    (fell_back,) = [
        event.data["rollout_id"]
        for event in await backend.store.events("s", since=0, limit=ALWAYS)
        if event.event_type == "mipro.rollout.fell_back"
    ][:1]
    asked = len(backend.model.bodies)
    candidate_id, _ = await backend.call(fell_back)
    assert candidate_id != long_id
    assert len(backend.model.bodies) == asked + 1


async def test_where_the_champion_is_refused_too_the_refusal_stays_the_candidates(
    backend: Backend,
) -> None:
    long_id = await with_long_candidate(backend)
    backend.model.answer = lambda _: REFUSAL
    answered = [(await backend.call(f"r{number}"))[0] for number in range(20)]
    assert long_id in answered
    rollout = await backend.rollouts.find("s", f"r{answered.index(long_id)}")
    assert (rollout.candidate_id, rollout.fell_back) == (long_id, False)


async def test_without_the_setting_the_refusal_is_passed_on(backend: Backend) -> None:
    long_id = await with_long_candidate(backend, fallback_to_champion=False)
    fail_when_long(backend, REFUSAL)
    answers = [await backend.call(f"r{number}") for number in range(20)]
    assert (long_id, json.loads(REFUSAL.body)) in answers


async def test_a_named_candidate_is_evaluated_as_it_is(backend: Backend) -> None:
    long_id = await with_long_candidate(backend)
    fail_when_long(backend, REFUSAL)
    candidate_id, answer = await backend.call(candidate_id=long_id)
    assert (candidate_id, answer) == (long_id, json.loads(REFUSAL.body))
    assert (await backend.store.learning_facts("s")).failures.total == 0


async def test_both_calls_are_on_record_and_paid(backend: Backend) -> None:
    price = {"prompt_usd_per_million_tokens": 1e6, "completion_usd_per_million_tokens": 0.0}
    long_id = await with_long_candidate(backend, policy=price)
    fail_when_long(backend, spoilt("", "content_filter"))
    await run(backend, 0, 20)
    status = await backend.sessions.status("s")
    report = status.candidates[long_id]
    assert report.failures > 0
    assert report.prompt_tokens > 0
    assert status.context_apply.calls == len(backend.model.bodies)


async def test_demonstrations_that_pass_the_context_are_made_smaller(backend: Backend) -> None:
    """The model takes 700 characters, and says so."""
    await backend.create(proposer={"mode": "demonstrations_only"}, demonstrations={"sizes": [8]})

    def answer(body: ChatBody) -> str | Answer:
        sent = length(body)
        if sent <= 700:
            return f"answer {len(backend.model.bodies)}"
        said = f"maximum context length is 700 tokens, but {sent} tokens were sent"
        return Answer(json.dumps({"error": {"message": said}}).encode(), status=400)

    backend.model.answer = answer
    for number in range(150):
        await backend.call(f"r{number}", text=f"Query: {number} " + "and so on " * 12)
        await backend.reward(f"r{number}")
        await backend.checks.settle()
        await backend.proposals.settle()
    status = await backend.sessions.status("s")
    in_play = [report for report in status.candidates.values() if report.status != "retired"]
    lengths = [
        sum(len(shown["input"]) + len(shown["output"]) for shown in report.demonstrations)
        for report in in_play
    ]
    assert 0 < max(lengths) < 600
    assert any("demonstration sets have" in warning for warning in status.warnings)
    late = backend.model.bodies[-60:]
    assert sum(length(body) > 700 for body in late) == 0
