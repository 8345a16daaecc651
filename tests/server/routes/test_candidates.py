"""Candidates and seed evals over HTTP."""

from __future__ import annotations

import pytest

from tests.server.routes.conftest import SESSIONS, Caller


def test_candidates_are_listed_and_found(caller: Caller) -> None:
    session_id = caller.session()["session_id"]
    listed = caller.http.get(f"/api/systems/{session_id}/candidates?limit=200").json()
    (item,) = listed["items"]
    assert listed["next_cursor"] is None
    found = caller.http.get(f"/api/candidates/{item['candidate_id']}").json()
    assert found == item
    assert found["system_id"] == session_id


def test_an_instruction_of_the_callers_own_competes(caller: Caller) -> None:
    path = f"/api/systems/{caller.session()['session_id']}/candidates"
    answer = caller.http.post(path, json={"instruction": "Name the query's label.", "label": "me"})
    assert answer.status_code == 201
    assert answer.json()["prompt_text"] == "Name the query's label."
    assert len(caller.http.get(path, params={"limit": 1}).json()["items"]) == 1
    assert len(caller.http.get(path).json()["items"]) == 2


@pytest.mark.parametrize("body", [{}, {"instruction": ""}, {"instruction": 5}, []])
def test_an_instruction_that_is_none_is_refused(caller: Caller, body: object) -> None:
    session_id = caller.session()["session_id"]
    answer = caller.http.post(f"/api/systems/{session_id}/candidates", json=body)
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("query", "seeds"),
    [
        ({}, {1, 7}),
        ({"success": "True"}, {1}),
        ({"success": "False"}, {7}),
        ({"success": "true"}, {1}),
        ({"seed": "7"}, {7}),
        ({"split": "train"}, {1}),
        ({"split": "validation", "include": "artifact_refs"}, {7}),
    ],
)
def test_seed_evals_are_filtered(caller: Caller, query: dict[str, str], seeds: set[int]) -> None:
    session = caller.session()
    for seed, score in ((1, 1.0), (7, 0.0)):
        caller.chat(session, f"r{seed}")
        caller.http.post(
            f"{SESSIONS}/{session['session_id']}/reward",
            json={
                "reward_info": {"score": score},
                "rollout_id": f"r{seed}",
                "metadata": {"seed": seed},
            },
        )
    candidate_id = session["baseline_candidate_id"]
    for path in (
        f"/api/systems/{session['session_id']}/seed-evals",
        f"/api/candidates/{candidate_id}/seed-evals",
    ):
        items = caller.http.get(path, params=query).json()["items"]
        assert {item["seed"] for item in items} == seeds


def test_the_examples_of_a_candidate_are_what_it_answered(caller: Caller) -> None:
    session = caller.session()
    path = f"{SESSIONS}/{session['session_id']}"
    caller.chat(session, "r1")
    reward = {"reward_info": {"score": 0.5}, "rollout_id": "r1", "metadata": {"seed": 7}}
    caller.http.post(f"{path}/reward", json=reward)
    query = {"candidate_id": session["baseline_candidate_id"]}
    (item,) = caller.http.get(f"{path}/examples", params=query).json()["items"]
    assert (item["example_id"], item["reward"]) == ("7", 0.5)
    assert item["input"]
    assert item["output"]
    unknown = caller.http.get(f"{path}/examples", params={"candidate_id": "cand_no"})
    assert (unknown.status_code, unknown.json()["error"]) == (404, "CandidateNotFound")


@pytest.mark.parametrize("path", ["/api/candidates/cand_no", "/api/candidates/cand_no/seed-evals"])
def test_an_unknown_candidate_is_not_found(caller: Caller, path: str) -> None:
    answer = caller.http.get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "CandidateNotFound")


def test_a_success_that_is_no_boolean_is_refused(caller: Caller) -> None:
    session_id = caller.session()["session_id"]
    answer = caller.http.get(f"/api/systems/{session_id}/seed-evals?success=maybe")
    assert answer.status_code == 422
    assert "'maybe'" in answer.json()["message"]
