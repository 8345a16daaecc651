"""The session resource over HTTP, in both dialects."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.routes.conftest import CONFIG, SESSIONS, Caller

OLDER = "/api/prompt-learning/online/mipro/sessions"


@pytest.mark.parametrize("prefix", [SESSIONS, OLDER])
def test_create_is_201_and_the_same_again_200(caller: Caller, prefix: str) -> None:
    body = {"session_id": f"twice-{len(prefix)}", "config_body": CONFIG}
    first, second = (caller.http.post(prefix, json=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["online_url"] == second.json()["online_url"]


def test_urls_begin_with_the_public_url(caller: Caller) -> None:
    session = caller.session()
    secret_id = session["online_url"].rpartition("/")[2]
    assert session["online_url"] == f"http://mipro.invalid/api/mipro/v1/{secret_id}"
    assert session["proxy_url"] == session["online_url"]
    assert session["chat_completions_url"] == f"{session['online_url']}/chat/completions"


@pytest.mark.parametrize("prefix", [SESSIONS, OLDER])
def test_status_and_urls_are_found_under_both_prefixes(caller: Caller, prefix: str) -> None:
    session = caller.session()
    status = caller.http.get(f"{prefix}/{session['session_id']}").json()
    urls = caller.http.get(f"{prefix}/{session['session_id']}/prompt?correlation_id=c").json()
    assert status["status"] == "running"
    assert urls == {key: session[key] for key in urls}


def test_the_generic_classs_create_is_understood(caller: Caller) -> None:
    body = {
        "kind": "mipro_online",
        "technique": "discrete_optimization",
        "system": {"name": "generic", "reuse": True},
        "config_mode": "FULL",
        "config": CONFIG,
        "prompt_opt_version": "v1",
        "metadata": {},
    }
    answer = caller.http.post(SESSIONS, json=body)
    assert answer.status_code == 201
    assert answer.json()["session_id"] == "generic"


def test_states_change_by_patch(caller: Caller) -> None:
    path = f"{SESSIONS}/{caller.session()['session_id']}"
    for state in ("paused", "running", "cancelled"):
        assert caller.http.patch(path, json={"state": state}).json()["status"] == state
    refused = caller.http.patch(path, json={"state": "running"})
    assert (refused.status_code, refused.json()["error"]) == (409, "SessionEnded")


def test_states_change_by_action_in_the_older_dialect(caller: Caller) -> None:
    path = f"{OLDER}/{caller.session()['session_id']}"
    for action, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        assert caller.http.post(f"{path}/{action}", json={}).json()["status"] == state
    assert caller.http.post(f"{path}/resume", json={}).status_code == 409


def test_unknown_state_words_are_refused(caller: Caller) -> None:
    session_id = caller.session()["session_id"]
    patch = caller.http.patch(f"{SESSIONS}/{session_id}", json={"state": "asleep"})
    action = caller.http.post(f"{OLDER}/{session_id}/sleep", json={})
    assert (patch.status_code, action.status_code) == (422, 404)
    assert "'asleep'" in patch.json()["message"]
    assert "/sleep" in action.json()["message"]


def test_a_reward_reaches_its_rollout(caller: Caller) -> None:
    session = caller.session()
    served = caller.chat(session, "r1")
    receipt = caller.http.post(
        f"{SESSIONS}/{session['session_id']}/reward",
        json={"reward_info": {"score": 1.0}, "rollout_id": "r1"},
    ).json()
    assert receipt["status"] == "accepted"
    assert receipt["attached"] is True
    assert receipt["candidate_id"] == served.headers["x-mipro-candidate-id"]


def test_a_repeated_request_key_counts_once(caller: Caller) -> None:
    session = caller.session()
    caller.chat(session, "r1")
    caller.chat(session, "r2")
    receipts = [
        caller.http.post(
            f"{SESSIONS}/{session['session_id']}/reward",
            json={"reward_info": {"score": 1.0}},
            headers={"Idempotency-Key": "same"},
        ).json()
        for _ in range(2)
    ]
    assert receipts[0]["rollout_id"] == receipts[1]["rollout_id"]
    assert [receipt["duplicate"] for receipt in receipts] == [False, True]


def test_sessions_are_listed_page_by_page_newest_first(caller: Caller) -> None:
    made = [caller.session()["session_id"] for _ in range(3)]
    first = caller.http.get(SESSIONS, params={"limit": 2}).json()
    second = caller.http.get(SESSIONS, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    listed = [item["session_id"] for item in [*first["items"], *second["items"]]]
    assert listed[:3] == made[::-1]


@pytest.mark.parametrize(("limit", "found"), [("0", 1), ("-5", 1), ("99999", 2)])
def test_limits_are_clamped(caller: Caller, limit: str, found: int) -> None:
    caller.session()
    caller.session()
    items = caller.http.get(SESSIONS, params={"limit": limit}).json()["items"]
    assert len(items) >= found if found > 1 else len(items) == found


def test_a_date_without_a_zone_is_utc(caller: Caller) -> None:
    caller.session()
    found = caller.http.get(SESSIONS, params={"created_after": "2999-01-01T00:00:00"})
    assert found.json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(
    "query",
    [{"limit": "many"}, {"state": "asleep"}, {"created_after": "soon"}, {"cursor": "not-ours"}],
)
def test_a_query_that_makes_no_sense_is_refused(caller: Caller, query: dict[str, str]) -> None:
    answer = caller.http.get(SESSIONS, params=query)
    assert answer.status_code == 422
    (value,) = query.values()
    assert value in answer.json()["message"]


def test_events_begin_after_a_number(caller: Caller) -> None:
    session_id = caller.session()["session_id"]
    caller.http.patch(f"{SESSIONS}/{session_id}", json={"state": "paused"})
    events = caller.http.get(f"{SESSIONS}/{session_id}/events").json()["events"]
    later = caller.http.get(
        f"{SESSIONS}/{session_id}/events", params={"since_seq": events[0]["seq"]}
    ).json()["events"]
    assert later == events[1:]
    assert len(events) >= 2


def test_a_number_no_database_can_hold_is_refused(caller: Caller) -> None:
    session_id = caller.session()["session_id"]
    for path in (
        f"{SESSIONS}/{session_id}/events?since_seq={10**30}",
        f"/api/systems/{session_id}/seed-evals?seed={10**30}",
    ):
        assert caller.http.get(path).status_code == 422


class TestSystems:
    """The routes of older programs."""

    PATH = "/api/prompt-learning/online/mipro/systems"

    def report(self, caller: Caller, session: dict[str, Any], **body: Any) -> httpx.Response:
        return caller.http.post(f"{self.PATH}/{session['session_id']}/status", json=body)

    def test_reward_then_done_names_the_candidate_both_times(self, caller: Caller) -> None:
        session = caller.session()
        served = caller.chat(session, "trace_rollout_1")
        for body in ({"status": "reward", "reward": 1.0}, {"status": "done"}):
            answer = self.report(caller, session, rollout_id="trace_rollout_1", **body)
            assert answer.json()["candidate_id"] == served.headers["x-mipro-candidate-id"]
        assert (
            caller.http.get(f"{self.PATH}/{session['session_id']}/state").json()["reward_count"]
            == 1
        )

    def test_done_may_carry_the_reward(self, caller: Caller) -> None:
        session = caller.session()
        caller.chat(session, "r1")
        answer = self.report(caller, session, rollout_id="r1", status="done", reward=0.5)
        assert (answer.json()["reward"], answer.json()["attached"]) == (0.5, True)

    def test_reward_without_a_number_is_refused(self, caller: Caller) -> None:
        answer = self.report(caller, caller.session(), rollout_id="r1", status="reward")
        assert (answer.status_code, answer.json()["error"]) == (422, "RewardInvalid")

    def test_done_for_a_rollout_never_served_is_refused(self, caller: Caller) -> None:
        answer = self.report(caller, caller.session(), rollout_id="r1", status="done")
        assert (answer.status_code, answer.json()["error"]) == (404, "RolloutNotFound")

    def test_replacements_make_a_candidate_of_the_baseline(self, caller: Caller) -> None:
        session = caller.session()
        answer = self.add(
            caller, session, old_text="banking queries", new_text="card queries"
        ).json()
        assert answer["candidate_id"].startswith("cand_")
        assert answer["prompt_text"] == "You classify card queries."
        assert answer["metadata"]["label"] == "by hand"

    @pytest.mark.parametrize(
        ("replacement", "word"),
        [
            ({"old_text": "not there", "new_text": "x"}, "'not there'"),
            ({"old_text": "Query", "new_text": "Q", "apply_to_role": "user"}, "'user'"),
            ({"old_text": "", "new_text": "x"}, "old_text"),
        ],
    )
    def test_a_replacement_that_changes_nothing_is_refused(
        self, caller: Caller, replacement: dict[str, str], word: str
    ) -> None:
        answer = self.add(caller, caller.session(), **replacement)
        assert answer.status_code == 422
        assert word in answer.json()["message"]

    def test_events_have_their_older_path(self, caller: Caller) -> None:
        session_id = caller.session()["session_id"]
        older = caller.http.get(f"{self.PATH}/{session_id}/events").json()
        assert older == caller.http.get(f"{SESSIONS}/{session_id}/events").json()

    def add(self, caller: Caller, session: dict[str, Any], **replacement: str) -> httpx.Response:
        deltas = {"transformation": {"text_replacements": [replacement], "example_injections": []}}
        return caller.http.post(
            f"{self.PATH}/{session['session_id']}/candidates",
            json={"deltas": deltas, "metadata": {"label": "by hand"}},
        )
