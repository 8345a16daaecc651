"""Traces posted over HTTP, of calls that a leased rollout made itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.routes.conftest import CONFIG, LARGEST_BODY, SESSIONS, Caller
from tests.server.scripted_upstream import COMPLETION, answers

OLDER = "/api/prompt-learning/online/mipro/sessions"
Json = dict[str, Any]
MESSAGES = [
    {"role": "system", "content": "You classify banking queries."},
    {"role": "user", "content": "Query: where is my card?"},
]
TRACE: Json = {
    "messages": MESSAGES,
    "output": "card_arrival",
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    "latency_seconds": 0.5,
}


@pytest.fixture
def session(caller: Caller) -> Json:
    """A new session whose rollout r1 is leased."""
    session = caller.session()
    lease(caller, session, "r1")
    return session


def lease(caller: Caller, session: Json, rollout_id: str) -> Json:
    path = f"{SESSIONS}/{session['session_id']}/prompt"
    leased: Json = caller.http.get(path, params={"rollout_id": rollout_id}).json()
    return leased


def post(
    caller: Caller,
    session: Json,
    rollout_id: str = "r1",
    *,
    key: str | None = None,
    prefix: str = SESSIONS,
    **changes: Any,
) -> httpx.Response:
    """Post a trace that differs from the usual one by these changes."""
    return caller.http.post(
        f"{prefix}/{session['session_id']}/rollouts/{rollout_id}/traces",
        json={name: value for name, value in {**TRACE, **changes}.items() if value is not None},
        headers={"Idempotency-Key": key} if key else {},
    )


def status(caller: Caller, session: Json) -> Json:
    answer: Json = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
    return answer


def exported(caller: Caller, session: Json) -> list[Json]:
    answer = caller.http.get(f"{SESSIONS}/{session['session_id']}/export")
    return [json.loads(line) for line in answer.text.splitlines()]


def baseline(caller: Caller, session: Json) -> Json:
    """The baseline in the status map."""
    told = status(caller, session)
    report: Json = told["candidates"][told["baseline_candidate_id"]]
    return report


class TestCounting:
    @pytest.mark.parametrize("prefix", [SESSIONS, OLDER])
    def test_a_trace_is_accepted_for_the_rollouts_candidate(
        self, caller: Caller, session: Json, prefix: str
    ) -> None:
        answer = post(caller, session, prefix=prefix, trace_id=f"t-{session['session_id']}")
        assert answer.status_code == 201
        assert answer.json() == {
            "status": "accepted",
            "session_id": session["session_id"],
            "rollout_id": "r1",
            "candidate_id": session["baseline_candidate_id"],
            "trace_id": f"t-{session['session_id']}",
            "duplicate": False,
        }

    def test_it_counts_what_a_proxied_call_counts(self, caller: Caller) -> None:
        proxied, posted = caller.session(), caller.session()
        caller.chat(proxied, "r1")
        lease(caller, posted, "r1")
        post(caller, posted, output=None, usage=None, response=COMPLETION)
        counts = ("rollout_count", "failed_calls", "unapplied_calls")
        tokens = ("prompt_tokens", "completion_tokens")
        ours, theirs = baseline(caller, posted), baseline(caller, proxied)
        assert [ours[name] for name in counts + tokens] == [
            theirs[name] for name in counts + tokens
        ]
        assert ours["latency_seconds"] == 0.5

    def test_a_latency_that_nobody_knows_is_no_latency(self, caller: Caller) -> None:
        session = caller.session()
        lease(caller, session, "r1")
        assert post(caller, session, latency_seconds=None).status_code == 201
        assert baseline(caller, session)["latency_seconds"] is None
        (frame,) = status(caller, session)["sensor_frames"]
        assert "timing" not in frame["sensor_kinds"]
        post(caller, session, latency_seconds=0.5)
        assert baseline(caller, session)["latency_seconds"] == 0.5
        traces = [line for line in exported(caller, session) if line["part"] == "trace"]
        assert [trace["latency_seconds"] for trace in traces] == [None, 0.5]

    def test_tokens_that_nobody_told_are_estimated_as_they_are_of_a_proxied_call(
        self, caller: Caller
    ) -> None:
        proxied, posted = caller.session(), caller.session()
        untold = {"choices": [{"message": {"role": "assistant", "content": "card_arrival"}}]}
        caller.upstream.script.append(answers(200, json.dumps(untold).encode()))
        caller.chat(proxied, "r1")
        lease(caller, posted, "r1")
        post(caller, posted, messages=MESSAGES, output="card_arrival", usage=None)
        tokens = [
            (told["prompt_tokens"], told["completion_tokens"])
            for told in (baseline(caller, proxied), baseline(caller, posted))
        ]
        assert tokens[0] == tokens[1]
        assert min(tokens[1]) > 0
        (trace,) = (line for line in exported(caller, posted) if line["part"] == "trace")
        assert trace["estimated"] is True

    @pytest.mark.parametrize(
        "told",
        [
            {"usage": {"prompt_tokens": 0, "completion_tokens": 0}},
            {"usage": None, "output": None, "error": "it did not answer"},
        ],
    )
    def test_a_call_that_used_none_is_not_estimated(
        self, caller: Caller, session: Json, told: Json
    ) -> None:
        post(caller, session, **told)
        report = baseline(caller, session)
        assert (report["prompt_tokens"], report["completion_tokens"]) == (0, 0)

    def test_its_sensors_are_those_of_a_call(self, caller: Caller, session: Json) -> None:
        post(caller, session, trace_id="sensed")
        (frame,) = status(caller, session)["sensor_frames"]
        assert frame["trace_ids"] == ["sensed", "r1"]
        assert {"timing", "resource", "context_apply", "trace"} <= set(frame["sensor_kinds"])

    def test_prices_make_a_cost_of_its_tokens(self, caller: Caller) -> None:
        session = caller.session(
            overrides={
                "prompt_learning.policy.prompt_usd_per_million_tokens": 1_000_000.0,
                "prompt_learning.policy.completion_usd_per_million_tokens": 10_000_000.0,
            }
        )
        lease(caller, session, "r1")
        post(caller, session)
        assert baseline(caller, session)["cost_usd"] == pytest.approx(27.0)

    def test_the_model_that_answered_has_a_price_of_its_own(self, caller: Caller) -> None:
        price = {
            "prompt_usd_per_million_tokens": 1_000_000.0,
            "completion_usd_per_million_tokens": 0.0,
        }
        session = caller.session(overrides={"prompt_learning.prices": {"claude": price}})
        lease(caller, session, "r1")
        post(caller, session, model="claude")
        report = baseline(caller, session)
        assert report["cost_usd"] == pytest.approx(7.0)

    def test_a_call_that_failed_counts_as_failed(self, caller: Caller, session: Json) -> None:
        answer = post(caller, session, output=None, usage=None, error="ThrottlingException: slow")
        report = baseline(caller, session)
        assert answer.status_code == 201
        assert (report["failed_calls"], report["prompt_tokens"]) == (1, 0)

    def test_a_prompt_that_was_not_used_is_reported(self, caller: Caller, session: Json) -> None:
        post(caller, session, unapplied_reason="the program used its own prompt")
        assert baseline(caller, session)["unapplied_calls"] == 1
        told = status(caller, session)
        assert told["context_apply"]["last_reason"] == "the program used its own prompt"

    @pytest.mark.parametrize(
        "usage",
        [
            {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9},
            {"input_tokens": 7, "output_tokens": 2},
            {"promptTokenCount": 7, "candidatesTokenCount": 2},
            {"prompt_token_count": 7, "candidates_token_count": 2},
        ],
        ids=["bedrock", "anthropic", "vertex", "google-genai"],
    )
    def test_tokens_go_by_the_names_of_other_apis_too(
        self, caller: Caller, session: Json, usage: Json
    ) -> None:
        post(caller, session, usage=usage)
        report = baseline(caller, session)
        assert (report["prompt_tokens"], report["completion_tokens"]) == (7, 2)

    def test_a_count_that_is_null_is_zero(self, caller: Caller, session: Json) -> None:
        post(caller, session, usage={"prompt_token_count": 7, "candidates_token_count": None})
        report = baseline(caller, session)
        assert (report["prompt_tokens"], report["completion_tokens"]) == (7, 0)

    def test_several_calls_of_a_rollout_count_each(self, caller: Caller, session: Json) -> None:
        for text in ("one", "two", "three"):
            assert post(caller, session, output=text).json()["duplicate"] is False
        report = baseline(caller, session)
        assert (report["rollout_count"], report["prompt_tokens"]) == (1, 21)

    def test_the_reward_may_come_before_the_trace(self, caller: Caller, session: Json) -> None:
        reward = {"reward_info": {"score": 1.0}, "rollout_id": "r1"}
        path = f"{SESSIONS}/{session['session_id']}/reward"
        assert caller.http.post(path, json=reward).json()["attached"] is True
        assert post(caller, session).status_code == 201

    def test_a_session_that_has_ended_still_takes_traces(
        self, caller: Caller, session: Json
    ) -> None:
        caller.http.patch(f"{SESSIONS}/{session['session_id']}", json={"state": "cancelled"})
        assert post(caller, session).status_code == 201

    def test_a_rollout_that_the_proxy_served_takes_traces(self, caller: Caller) -> None:
        session = caller.session()
        served = caller.chat(session, "r1").headers["x-mipro-candidate-id"]
        assert post(caller, session).json()["candidate_id"] == served


class TestRepeats:
    def test_the_same_trace_id_counts_once(self, caller: Caller, session: Json) -> None:
        first, second = (post(caller, session, trace_id="once") for _ in "ab")
        assert (first.status_code, second.status_code) == (201, 200)
        assert second.json() == {**first.json(), "duplicate": True}
        assert baseline(caller, session)["prompt_tokens"] == 7

    def test_the_same_request_key_counts_once(self, caller: Caller, session: Json) -> None:
        first, second = (post(caller, session, key="any words: 1/2") for _ in "ab")
        assert (first.status_code, second.status_code) == (201, 200)
        assert first.json()["trace_id"] == second.json()["trace_id"]
        assert baseline(caller, session)["prompt_tokens"] == 7

    def test_another_session_may_use_the_same_request_key(
        self, caller: Caller, session: Json
    ) -> None:
        other = caller.session()
        lease(caller, other, "r1")
        assert post(caller, session, key="k").json()["duplicate"] is False
        assert post(caller, other, key="k").json()["duplicate"] is False

    def test_repeats_that_come_at_once_count_once(self, caller: Caller, session: Json) -> None:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: post(caller, session, trace_id="rush"), range(16)))
        assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
        assert baseline(caller, session)["prompt_tokens"] == 7

    @pytest.mark.parametrize(
        "change",
        [
            {"output": "lost_card"},
            {"output": None, "error": "it broke"},
            {"latency_seconds": 0.6},
            {"usage": {"prompt_tokens": 8, "completion_tokens": 2}},
            {"messages": MESSAGES[1:]},
            {"model": "another"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_another_trace_under_the_same_id_is_a_conflict(
        self, caller: Caller, session: Json, change: Json
    ) -> None:
        trace_id = f"taken-in-{session['session_id']}"
        post(caller, session, trace_id=trace_id)
        answer = post(caller, session, trace_id=trace_id, **change)
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
        assert trace_id in answer.json()["message"]
        assert baseline(caller, session)["prompt_tokens"] == 7

    def test_another_rollouts_trace_id_is_a_conflict(self, caller: Caller, session: Json) -> None:
        lease(caller, session, "r2")
        post(caller, session, trace_id="of-r1")
        assert post(caller, session, "r2", trace_id="of-r1").status_code == 409

    def test_another_sessions_trace_id_is_a_conflict(self, caller: Caller, session: Json) -> None:
        other = caller.session()
        lease(caller, other, "r1")
        post(caller, session, trace_id="of-one-session")
        assert post(caller, other, trace_id="of-one-session").status_code == 409

    def test_words_that_no_database_holds_are_the_same_again(
        self, caller: Caller, session: Json
    ) -> None:
        strange = {"output": "a\0b", "error": "c\0d", "unapplied_reason": "e\0f"}
        answers = [post(caller, session, trace_id="strange", **strange) for _ in "ab"]
        assert [answer.status_code for answer in answers] == [201, 200]


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"messages": None}, "messages is missing"),
            ({"messages": []}, "send at least one message"),
            ({"messages": [{"role": 1, "content": "x"}]}, "message 0 has no role"),
            ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "say their type"),
            ({"messages": "x"}, "messages is 'x'"),
            ({"latency_seconds": -0.1}, "latency_seconds is -0.1"),
            ({"latency_seconds": 1e9}, "latency_seconds is 1000000000.0"),
            ({"first_byte_seconds": 0.6}, "first_byte_seconds is longer than latency_seconds"),
            ({"output": None}, "send the answer as output or response, or an error"),
            ({"output": None, "error": ""}, "send the answer as output or response, or an error"),
            ({"response": COMPLETION}, "send response or output, not both"),
            ({"output": None, "response": {"choices": []}}, "it is no chat completion"),
            ({"output": None, "response": {"choices": [{"text": "x"}]}}, "no chat completion"),
            ({"output": 5}, "output is 5"),
            ({"usage": {"tokens": 9}}, "usage.prompt_tokens is missing"),
            ({"usage": {"prompt_tokens": -1, "completion_tokens": 0}}, "usage.prompt_tokens is -1"),
            ({"usage": {"inputTokens": 10**12, "outputTokens": 0}}, "1000000000000"),
            ({"trace_id": "a b"}, "trace_id is 'a b'"),
            ({"trace_id": "t" * 201}, "trace_id is"),
            ({"model": "a\nb"}, "printable"),
        ],
    )
    def test_what_is_no_trace_is_refused_and_not_counted(
        self, caller: Caller, session: Json, change: Json, words: str
    ) -> None:
        answer = post(caller, session, **change)
        assert (answer.status_code, answer.json()["error"]) == (422, "InputInvalid")
        assert words in answer.json()["message"]
        assert baseline(caller, session)["prompt_tokens"] == 0

    def test_a_rollout_never_leased_is_not_found(self, caller: Caller, session: Json) -> None:
        answer = post(caller, session, "r2")
        assert (answer.status_code, answer.json()["error"]) == (404, "RolloutNotFound")

    def test_an_unknown_session_is_not_found(self, caller: Caller) -> None:
        answer = post(caller, {"session_id": "nobody"})
        assert (answer.status_code, answer.json()["error"]) == (404, "SessionNotFound")

    def test_an_evaluations_rollout_is_not_found(self, caller: Caller) -> None:
        session = caller.session()
        caller.http.get(
            f"{SESSIONS}/{session['session_id']}/prompt",
            params={"rollout_id": "r1", "candidate_id": session["baseline_candidate_id"]},
        )
        assert post(caller, session).status_code == 404

    def test_a_trace_that_is_too_large_is_refused(self, caller: Caller, session: Json) -> None:
        answer = post(caller, session, output="x" * LARGEST_BODY)
        assert (answer.status_code, answer.json()["error"]) == (413, "BodyTooLarge")

    def test_a_trace_wants_the_key(self, caller: Caller, session: Json) -> None:
        path = f"{SESSIONS}/{session['session_id']}/rollouts/r1/traces"
        assert caller.program.post(path, json=TRACE).status_code == 401

    def test_an_error_of_any_length_is_kept_in_short(self, caller: Caller, session: Json) -> None:
        assert post(caller, session, error="e" * 5_000).status_code == 201


def test_a_posted_call_uses_up_the_budget_of_tokens(caller: Caller) -> None:
    table = {**CONFIG["prompt_learning"], "termination_config": {"max_tokens": 9}}
    session = caller.session(config_body={"prompt_learning": table})
    lease(caller, session, "r1")
    post(caller, session)
    lease(caller, session, "r2")
    assert status(caller, session)["status"] == "succeeded"
