"""What a session learns from rollouts that never came through its proxy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.routes.conftest import CONFIG, SESSIONS, Caller

Json = dict[str, Any]
LABELS = ("refund", "delivery", "login", "price")
ROLLOUTS = 40
MOST_LOOKS = 500


class Program:
    """A program with a model of its own: it leases, answers, posts and reports.

    Its session knows no model at all.
    """

    def __init__(self, caller: Caller) -> None:
        table = {**CONFIG["prompt_learning"], "policy": {"provider": "none"}}
        self.session = caller.session(config_body={"prompt_learning": table})
        self.path = f"{SESSIONS}/{self.session['session_id']}"
        self._http = caller.http

    def lease(self, number: int, **more: Any) -> Json:
        body = {
            "rollout_id": f"r{number}",
            "example_id": str(number),
            "inputs": {"query": self.query(number)},
            **more,
        }
        answer = self._http.post(f"{self.path}/prompt", json=body)
        assert answer.status_code == 200, answer.text
        leased: Json = answer.json()
        return leased

    def run(self, number: int) -> None:
        """A rollout whose answer is right."""
        leased = self.lease(number)
        self._http.post(
            f"{self.path}/rollouts/r{number}/traces",
            json={
                "messages": leased["messages"],
                "output": self.label(number),
                "latency_seconds": 0.1,
                "trace_id": self.trace_id(number),
            },
        ).raise_for_status()
        reward = {"reward_info": {"score": 1.0}, "rollout_id": f"r{number}", "shareable": True}
        self._http.post(f"{self.path}/reward", json=reward).raise_for_status()

    def status(self) -> Json:
        """The status after the first round, which goes on in the background."""
        for _ in range(MOST_LOOKS):
            status: Json = self._http.get(self.path).json()
            if status["proposer"]["rounds"]:
                return status
        raise AssertionError("no round was made")

    def candidate_with_demonstrations(self) -> str:
        """The id of one of them."""
        reports = self.status()["candidates"].values()
        return str(next(r["candidate_id"] for r in reports if r["demonstrations"]))

    @staticmethod
    def query(number: int) -> str:
        return f"my {LABELS[number % 4]} trouble, number {number}"

    @staticmethod
    def label(number: int) -> str:
        return LABELS[number % 4]

    def trace_id(self, number: int) -> str:
        return f"{self.path.rpartition('/')[2]}-trace-{number}"


@pytest.fixture(scope="module")
def program(_live: Caller) -> Program:
    """One that has run so often that a round of proposals is due."""
    program = Program(_live)
    for number in range(ROLLOUTS):
        program.run(number)
    return program


def test_posted_answers_become_demonstrations_that_leases_show(program: Program) -> None:
    candidate_id = program.candidate_with_demonstrations()
    leased = program.lease(1_000, candidate_id=candidate_id)
    shown = leased["levers"]["demonstrations"]["demonstrations"]
    posted = {f"Query: {program.query(n)}": n for n in range(ROLLOUTS)}
    assert shown
    for demonstration in shown:
        number = posted[demonstration["input"]]
        assert demonstration["output"] == program.label(number)
        assert demonstration["trace_id"] == program.trace_id(number)
        assert demonstration["example_id"] == str(number)
    assert leased["levers"]["demonstrations"]["version"] > 1
    assert leased["messages"] == [
        {"role": "system", "content": "You classify banking queries."},
        *(
            {"role": role, "content": demonstration[side]}
            for demonstration in shown
            for role, side in (("user", "input"), ("assistant", "output"))
        ),
        {"role": "user", "content": f"Query: {program.query(1_000)}"},
    ]


def test_a_rollouts_own_example_is_not_shown_to_it(program: Program) -> None:
    candidate_id = program.candidate_with_demonstrations()
    others = program.lease(1_000, candidate_id=candidate_id)
    shown = others["levers"]["demonstrations"]["demonstrations"]
    number = int(shown[0]["example_id"])
    leased = program.lease(number, candidate_id=candidate_id)
    assert leased["levers"]["demonstrations"]["demonstrations"] == shown[1:]
    assert len(leased["messages"]) == len(others["messages"]) - 2
    reworded = program.lease(
        number, candidate_id=candidate_id, inputs={"query": "the same in other words"}
    )
    assert len(reworded["messages"]) == len(leased["messages"])


def test_the_same_question_is_not_answered_by_its_demonstration(program: Program) -> None:
    candidate_id = program.candidate_with_demonstrations()
    others = program.lease(1_000, candidate_id=candidate_id)
    number = int(others["levers"]["demonstrations"]["demonstrations"][0]["example_id"])
    asked = program.lease(1_001, candidate_id=candidate_id, inputs={"query": program.query(number)})
    contents = [message["content"] for message in asked["messages"]]
    assert contents.count(f"Query: {program.query(number)}") == 1
    assert len(contents) == len(others["messages"]) - 2


def test_without_any_model_instructions_are_rewritten_and_the_status_says_what_is_missing(
    program: Program,
) -> None:
    status = program.status()
    assert len({report["instruction"] for report in status["candidates"].values()}) > 1
    assert "calls its model itself" in status["proposer"]["error"]


def test_the_proxy_of_such_a_session_says_what_to_do(caller: Caller, program: Program) -> None:
    answer = caller.chat(program.session, "by-proxy")
    assert answer.status_code == 422
    assert "lease its prompts" in answer.json()["error"]["message"]
