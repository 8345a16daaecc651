"""Calls that are served as they came, because their messages are not the session's prompt."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.server.routes.conftest import CHAT, SESSIONS, Caller
from tests.server.scripted_upstream import DONE, Connection, answers, event

Json = dict[str, Any]

PROMPT = "x-mipro-prompt"
OTHERS = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "hi"}]


def speak(connection: Connection) -> None:
    connection.begin_stream()
    connection.wfile.write(event("yes") + DONE)


def reward(caller: Caller, session: Json, rollout_id: str, score: float = 1.0) -> Json:
    path = f"{SESSIONS}/{session['session_id']}/reward"
    body = {"rollout_id": rollout_id, "reward_info": {"score": score}}
    receipt: Json = caller.http.post(path, json=body).json()
    return receipt


def status_of(caller: Caller, session: Json) -> Json:
    status: Json = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
    return status


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_header_tells_whether_the_prompt_was_applied(caller: Caller, streamed: bool) -> None:
    session = caller.session()
    for messages, word in ((CHAT["messages"], "applied"), (OTHERS, "as-sent")):
        caller.upstream.script.extend([speak] * streamed)
        answer = caller.chat(session, word, messages=messages, stream=streamed)
        assert (answer.status_code, answer.headers[PROMPT]) == (200, word)


def test_the_header_is_there_when_the_upstream_fails(caller: Caller) -> None:
    session = caller.session()
    caller.upstream.script.append(answers(200, b"nonsense"))
    answer = caller.chat(session, "r1", messages=OTHERS)
    assert (answer.status_code, answer.headers[PROMPT]) == (502, "as-sent")


def test_later_turns_of_an_agent_have_the_prompt(caller: Caller) -> None:
    session = caller.session()
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        *CHAT["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "in Rome"},
    ]
    assert caller.chat(session, "r1", messages=turns).headers[PROMPT] == "applied"


def test_its_reward_is_kept_and_does_not_count(caller: Caller) -> None:
    session = caller.session()
    for number in range(3):
        caller.chat(session, f"r{number}", messages=OTHERS)
        receipt = reward(caller, session, f"r{number}")
        assert (receipt["attached"], receipt["prompt_applied"]) == (True, False)
    caller.chat(session, "r3")
    assert reward(caller, session, "r3", 0.5)["prompt_applied"] is True
    assert reward(caller, session, "unknown")["prompt_applied"] is None
    status = status_of(caller, session)
    (baseline,) = status["candidates"].values()
    assert (baseline["reward_count"], baseline["avg_reward"]) == (1, 0.5)
    assert status["context_apply"]["unapplied_rollouts"] == 3
    assert status["reward_count"] == 4  # all that are on record
    assert status["reward_flow"]["in_flight"] == 0
    (warning,) = (each for each in status["warnings"] if "3 of 4 calls" in each)
    for word in ("3 of 4 rollouts", "You classify banking queries.", "You are helpful.", "send"):
        assert word in warning


def test_a_rollout_counts_when_one_of_its_calls_had_the_prompt(caller: Caller) -> None:
    session = caller.session()
    caller.chat(session, "r1", messages=OTHERS)
    reward(caller, session, "r1")
    assert status_of(caller, session)["reward_flow"]["rewarded"] == 0
    caller.chat(session, "r1")
    caller.chat(session, "r1", messages=OTHERS)
    status = status_of(caller, session)
    assert (status["reward_flow"]["rewarded"], status["context_apply"]["unapplied_rollouts"]) == (
        1,
        0,
    )


class TestLeases:
    """Programs that call their model themselves."""

    @staticmethod
    def leased(caller: Caller, session: Json, rollout_id: str, **body: Any) -> Json:
        path = f"{SESSIONS}/{session['session_id']}/prompt"
        lease: Json = caller.http.post(path, json={"rollout_id": rollout_id, **body}).json()
        return lease

    @staticmethod
    def post(caller: Caller, session: Json, rollout_id: str, **more: Any) -> None:
        path = f"{SESSIONS}/{session['session_id']}/rollouts/{rollout_id}/traces"
        trace = {"messages": OTHERS, "output": "yes", **more}
        caller.http.post(path, json=trace).raise_for_status()

    def test_messages_that_are_not_the_prompt_are_no_evidence(self, caller: Caller) -> None:
        session = caller.session()
        assert self.leased(caller, session, "r1", messages=OTHERS)["unapplied_reason"]
        self.post(caller, session, "r1")
        assert reward(caller, session, "r1")["prompt_applied"] is False
        self.leased(caller, session, "r1", inputs={"query": "where?"})
        assert status_of(caller, session)["reward_flow"]["rewarded"] == 1

    def test_a_program_says_that_it_left_the_prompt_out_even_after_its_reward(
        self, caller: Caller
    ) -> None:
        session = caller.session()
        path = f"{SESSIONS}/{session['session_id']}/prompt"
        caller.http.get(path, params={"rollout_id": "r1"}).raise_for_status()
        assert reward(caller, session, "r1")["prompt_applied"] is None
        assert status_of(caller, session)["reward_flow"]["rewarded"] == 1
        self.post(caller, session, "r1", unapplied_reason="it has a prompt of its own")
        status = status_of(caller, session)
        assert (
            status["reward_flow"]["rewarded"],
            status["context_apply"]["unapplied_rollouts"],
        ) == (0, 1)


def test_the_log_tells_of_the_first_and_of_each_power_of_ten(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    session, other = caller.session(), caller.session()
    for number in range(12):
        caller.chat(session, f"r{number}", messages=OTHERS)
    caller.chat(other, "r1", messages=OTHERS[1:])
    status_of(caller, other)  # by then all calls are on record
    told = [vars(record) for record in caplog.records if record.msg == "prompt_not_applied"]
    assert {record["levelno"] for record in told} == {logging.WARNING}
    assert [(record["session_id"], record["calls"]) for record in told] == [
        (session["session_id"], 1),
        (session["session_id"], 10),
        (other["session_id"], 1),
    ]
    assert told[0]["looked_for"] == "message 1 of the prompt (system, 29 characters)"
    assert told[0]["came"] == "system, 16 characters"
    assert told[2]["came"] == "no system message is left"
    assert "initial_prompt" in told[0]["hint"]
    assert "helpful" not in str(told)
