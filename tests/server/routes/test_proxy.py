"""The chat-completions proxy over real sockets: what passes, what is refused, what is cancelled."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.routes.conftest import CHAT, LARGEST_BODY, SESSIONS, Caller, chat_path
from tests.server.scripted_upstream import (
    COMPLETION,
    DONE,
    answers,
    break_off,
    complete,
    drop,
    event,
    hang,
)

JSON = {"Content-Type": "application/json"}
CANDIDATE = "x-mipro-candidate-id"
ROLLOUT = "x-mipro-rollout-id"
FALLBACK = "x-mipro-fallback-from"


def error_of(answer: Any) -> Any:
    """OpenAI's error object, whole and nothing beside it."""
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "code", "param"}
    return body["error"]


def test_the_answer_comes_back_unchanged_with_its_candidate(caller: Caller) -> None:
    session = caller.session()
    answer = caller.chat(session, "r1")
    assert answer.status_code == 200
    assert answer.json() == COMPLETION
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers[CANDIDATE] == session["baseline_candidate_id"]
    assert answer.headers[ROLLOUT] == "r1"


def test_what_is_not_the_prompt_passes_through(caller: Caller) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    caller.chat(caller.session(), "r1", tools=tools, seed=5, response_format={"type": "text"})
    sent = caller.upstream.received[0].body
    assert (sent["tools"], sent["seed"], sent["response_format"]) == (tools, 5, {"type": "text"})


def test_models_name_the_policy_model(caller: Caller) -> None:
    session = caller.session()
    for path in ("/models", "/r1/models"):
        listed = caller.program.get(urlsplit(session["online_url"]).path + path).json()
        assert [model["id"] for model in listed["data"]] == ["the-policy-model"]


def test_calls_at_the_same_time_are_all_answered_and_counted(caller: Caller) -> None:
    session = caller.session()
    statuses: list[int] = []

    def call(worker: int) -> None:
        statuses.extend(
            caller.chat(session, f"r{worker}-{number % 3}").status_code for number in range(6)
        )

    workers = [threading.Thread(target=call, args=(worker,)) for worker in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert statuses == [200] * 48
    status = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
    assert status["rollout_count"] == 24


class TestAdmission:
    """Who may call."""

    def test_the_sessions_own_url_needs_no_key(self, caller: Caller) -> None:
        assert caller.chat(caller.session(), "r1").status_code == 200

    def test_a_key_of_some_other_service_does_no_harm(self, caller: Caller) -> None:
        path = chat_path(caller.session(), "r1")
        answer = caller.program.post(path, json=CHAT, headers={"Authorization": "Bearer sk-other"})
        assert answer.status_code == 200

    @pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
    def test_the_plain_session_id_needs_a_key(self, caller: Caller, header: str) -> None:
        key = caller.http.headers["authorization"]
        sent = key if header == "Authorization" else key.removeprefix("Bearer ")
        path = f"/api/mipro/v1/{caller.session()['session_id']}/r1/chat/completions"
        assert caller.program.post(path, json=CHAT, headers={header: sent}).status_code == 200
        refused = caller.program.post(path, json=CHAT)
        assert refused.status_code == 401
        assert error_of(refused)["code"] == "KeyRejected"
        assert refused.headers["www-authenticate"] == "Bearer"

    def test_another_sessions_secret_is_refused(self, caller: Caller) -> None:
        one, other = caller.session(), caller.session()
        secret = other["online_url"].rpartition(".")[2]
        path = f"/api/mipro/v1/{one['session_id']}.{secret}/r1/chat/completions"
        assert caller.program.post(path, json=CHAT).status_code == 401

    def test_an_unknown_session_is_not_found_with_a_key(self, caller: Caller) -> None:
        answer = caller.http.post("/api/mipro/v1/nobody/r1/chat/completions", json=CHAT)
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "SessionNotFound"


class TestRolloutId:
    """Where the rollout's name comes from."""

    def test_one_is_made_when_none_is_given(self, caller: Caller) -> None:
        session = caller.session()
        answer = caller.program.post(urlsplit(session["chat_completions_url"]).path, json=CHAT)
        assert answer.headers[ROLLOUT].startswith("rollout_")

    @pytest.mark.parametrize(
        ("headers", "query", "rollout_id"),
        [
            ({ROLLOUT: "by-header"}, {"cid": "by-query"}, "by-header"),
            ({}, {"cid": "by-query"}, "by-query"),
        ],
    )
    def test_header_goes_before_query(
        self, caller: Caller, headers: dict[str, str], query: dict[str, str], rollout_id: str
    ) -> None:
        path = urlsplit(caller.session()["chat_completions_url"]).path
        answer = caller.program.post(path, json=CHAT, headers=headers, params=query)
        assert answer.headers[ROLLOUT] == rollout_id

    def test_the_path_goes_before_both(self, caller: Caller) -> None:
        path = chat_path(caller.session(), "by-path")
        answer = caller.program.post(
            path, json=CHAT, headers={ROLLOUT: "by-header"}, params={"cid": "by-query"}
        )
        assert answer.headers[ROLLOUT] == "by-path"

    @pytest.mark.parametrize(
        "rollout_id", ["a%20b", "%00", "-dash", "%2e%2e", "%E2%82%AC", "r" * 201, "r" * 20_000]
    )
    def test_an_id_that_paths_cannot_carry_is_refused(
        self, caller: Caller, rollout_id: str
    ) -> None:
        answer = caller.program.post(chat_path(caller.session(), rollout_id), json=CHAT)
        assert answer.status_code == 422
        assert error_of(answer)["message"].startswith("the rollout id is ")
        assert len(answer.content) < 4_096
        assert caller.upstream.received == []

    @pytest.mark.parametrize("name", ["correlation_id", "example_id"])
    @pytest.mark.parametrize("value", ["a\x00b", "x" * 201])
    def test_other_names_must_be_short_and_printable(
        self, caller: Caller, name: str, value: str
    ) -> None:
        path = chat_path(caller.session(), "r1")
        answer = caller.program.post(path, json=CHAT, params={name: value})
        assert answer.status_code == 422
        assert name.replace("_", " ") in error_of(answer)["message"]


def test_a_reward_by_correlation_id_finds_its_call(caller: Caller) -> None:
    session = caller.session()
    caller.program.post(chat_path(session, "r1"), json=CHAT, headers={"x-correlation-id": "run-7"})
    receipt = caller.http.post(
        f"{SESSIONS}/{session['session_id']}/reward",
        json={"reward_info": {"score": 1}, "correlation_id": "run-7"},
    ).json()
    assert receipt["rollout_id"] == "r1"


def test_a_candidate_can_be_asked_for_outside_of_learning(caller: Caller) -> None:
    session = caller.session()
    baseline_id = session["baseline_candidate_id"]
    answer = caller.program.post(
        chat_path(session, "r1"), json=CHAT, headers={CANDIDATE: baseline_id}
    )
    assert answer.headers[CANDIDATE] == baseline_id
    status = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
    assert status["rollout_count"] == 0


class TestBody:
    """Which bodies are refused, before anything is chosen or called."""

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            (b"", "JSON"),
            (b"not json", "JSON"),
            (b'{"messages": [{"role": "user", "content": NaN}]}', "JSON"),
            (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "JSON"),
            (b'{"messages": "\xff"}', "JSON"),
            (b"[]", "not a JSON object"),
            (b"{}", "messages is missing"),
            (b'{"messages": null}', "messages is None"),
            (b'{"messages": {}}', "messages is {}"),
            (b'{"messages": []}', "messages is []"),
            (b'{"messages": ["hi"]}', "messages[0] is hi"),
            (b'{"messages": [{"content": "hi"}]}', "messages[0].role is None"),
            (b'{"messages": [{"role": "user", "content": 5}]}', "messages[0].content is 5"),
            (b'{"messages": [{"role": "user", "content": ["hi"]}]}', "messages[0].content"),
            (b'{"messages": ' + b"[" * 90 + b"]" * 90 + b"}", "64 levels"),
            (b"[" * 90_000, "JSON"),
        ],
    )
    def test_what_makes_no_sense_is_a_bad_request(
        self, caller: Caller, body: bytes, word: str
    ) -> None:
        answer = caller.program.post(chat_path(caller.session(), "r1"), content=body, headers=JSON)
        assert answer.status_code == 400
        assert word in error_of(answer)["message"]
        assert error_of(answer)["type"] == "invalid_request_error"
        assert caller.upstream.received == []

    def test_many_brackets_that_are_not_deep_pass(self, caller: Caller) -> None:
        assert caller.chat(caller.session(), "r1", metadata=[{}] * 500).status_code == 200

    def test_sixty_four_levels_pass_and_arrive(self, caller: Caller) -> None:
        deep: Any = []
        for _ in range(62):
            deep = [deep]
        assert caller.chat(caller.session(), "r1", deep=deep).status_code == 200
        assert caller.upstream.received[0].body["deep"] == deep

    def test_one_that_is_announced_too_large_is_refused(self, caller: Caller) -> None:
        answer = caller.program.post(
            chat_path(caller.session(), "r1"), content=b" " * (LARGEST_BODY + 1), headers=JSON
        )
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "BodyTooLarge"

    def test_one_that_grows_too_large_is_refused(self, caller: Caller) -> None:
        pieces = (b" " * 10_000 for _ in range(100))
        answer = caller.program.post(
            chat_path(caller.session(), "r1"), content=pieces, headers=JSON
        )
        assert answer.status_code == 413


class TestUpstreamFailures:
    """What the caller hears when the model's server fails; each names its candidate."""

    @pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
    def test_its_own_refusals_pass_through(self, caller: Caller, status: int) -> None:
        body = b'{"error":{"message":"told so"}}'
        caller.upstream.script.append(answers(status, body))
        answer = caller.chat(caller.session(), "r1")
        assert (answer.status_code, answer.content) == (status, body)
        assert answer.headers[CANDIDATE]

    def test_its_retry_after_passes_through(self, caller: Caller) -> None:
        caller.upstream.script.append(answers(429, retry_after="60"))
        answer = caller.chat(caller.session(), "r1")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")

    def test_a_busy_moment_is_bridged(self, caller: Caller) -> None:
        caller.upstream.script.extend([answers(429, retry_after="0"), complete])
        assert caller.chat(caller.session(), "r1").status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_nonsense_is_a_bad_gateway(self, caller: Caller, stream: bool) -> None:
        caller.upstream.script.append(answers(200, b"<html>"))
        answer = caller.chat(caller.session(), "r1", stream=stream)
        assert answer.status_code == 502
        assert "nonsense" in error_of(answer)["message"]
        assert answer.headers[CANDIDATE]
        assert answer.headers[ROLLOUT] == "r1"

    def test_an_answer_that_breaks_off_is_a_bad_gateway(self, caller: Caller) -> None:
        caller.upstream.script.append(break_off)
        answer = caller.chat(caller.session(), "r1")
        assert (answer.status_code, error_of(answer)["code"]) == (502, "UpstreamUnreachable")

    def test_one_out_of_reach_is_a_bad_gateway(self, caller: Caller) -> None:
        caller.upstream.script.extend([drop] * 3)
        answer = caller.chat(caller.session(), "r1")
        assert (answer.status_code, error_of(answer)["code"]) == (502, "UpstreamUnreachable")
        assert answer.headers[CANDIDATE]


def test_a_fallback_names_who_answered_and_who_was_refused(caller: Caller) -> None:
    session = caller.session()
    candidates = f"/api/systems/{session['session_id']}/candidates"
    added = caller.http.post(candidates, json={"instruction": "Name the intent."}).json()
    found = set()
    for number in range(20):
        caller.upstream.script.append(answers(400))
        answer = caller.chat(session, f"r{number}")
        caller.upstream.script.clear()
        found.add((answer.status_code, answer.headers[CANDIDATE], answer.headers.get(FALLBACK)))
    baseline_id = session["baseline_candidate_id"]
    assert found == {(400, baseline_id, None), (200, baseline_id, added["candidate_id"])}


class TestStreams:
    """Event streams pass as they arrive."""

    def test_the_first_event_is_out_before_the_second_is_in(self, caller: Caller) -> None:
        caller.upstream.script.append(caller.upstream.stream(event("a"), event("b") + DONE))
        path = chat_path(caller.session(), "r1")
        with caller.program.stream("POST", path, json={**CHAT, "stream": True}) as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers[CANDIDATE]
            pieces = answer.iter_raw()
            assert next(pieces) == event("a")
            caller.upstream.gate.set()
            assert b"".join(pieces) == event("b") + DONE

    def test_its_trace_is_recorded_like_any_other(self, caller: Caller) -> None:
        caller.upstream.script.append(caller.upstream.stream(event("a") + DONE))
        session = caller.session()
        caller.chat(session, "r1", stream=True)
        caller.chat(session, "r2")
        candidates = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()["candidates"]
        assert candidates[session["baseline_candidate_id"]]["failed_calls"] == 0

    def test_one_that_breaks_off_ends_with_an_error_event(self, caller: Caller) -> None:
        def break_stream_off(connection: Any) -> None:
            connection.send_response(200)
            connection.send_header("Content-Type", "text/event-stream")
            connection.send_header("Content-Length", "1000")
            connection.end_headers()
            connection.wfile.write(event("a") + b'data: {"cut')
            connection.drop()

        caller.upstream.script.append(break_stream_off)
        answer = caller.chat(caller.session(), "r1", stream=True)
        assert answer.status_code == 200
        *whole, last = [part for part in answer.text.split("\n\n") if part]
        assert whole[0] == event("a").decode().strip()
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "UpstreamUnreachable"

    def test_the_upstreams_refusal_of_a_stream_passes_through(self, caller: Caller) -> None:
        caller.upstream.script.extend([answers(400)] * 2)  # the second time without a question
        answer = caller.chat(caller.session(), "r1", stream=True)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "told so")


class TestDisconnects:
    """A client that goes away takes its upstream call with it."""

    def leave(self, caller: Caller, body: dict[str, Any], *, after: bytes) -> None:
        """Send a call over a socket of our own, wait for these bytes, and hang up."""
        payload = json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(caller.url).netloc, timeout=20)
        connection.request("POST", chat_path(caller.session(), "r1"), payload, JSON)
        if after:
            assert connection.getresponse().readline() == after
        else:
            assert caller.upstream.arrived.wait(20)
        connection.close()

    @pytest.mark.parametrize("stream", [False, True])
    def test_before_the_first_byte(self, caller: Caller, stream: bool) -> None:
        caller.upstream.script.append(hang)
        self.leave(caller, {**CHAT, "stream": stream}, after=b"")
        assert caller.upstream.gone.wait(20)

    def test_in_the_middle_of_a_stream(self, caller: Caller) -> None:
        caller.upstream.script.append(caller.upstream.stream(event("a"), then=hang))
        self.leave(caller, {**CHAT, "stream": True}, after=event("a").splitlines(True)[0])
        assert caller.upstream.gone.wait(20)

    def test_the_backend_serves_the_next_call(self, caller: Caller) -> None:
        caller.upstream.script.append(hang)
        self.leave(caller, CHAT, after=b"")
        assert caller.upstream.gone.wait(20)
        assert caller.chat(caller.session(), "r1").status_code == 200
