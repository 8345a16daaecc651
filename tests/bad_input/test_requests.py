"""Bodies, paths and queries that no honest caller sends: refused by name, early and cheaply."""

from __future__ import annotations

import base64
import gzip
import json
import time
from typing import Any

import httpx
import pytest

from prefect_mipro.server.routes.bodies import MOST_BRANCHES, parse_json
from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS, Caller, chat_path

JSON = {"Content-Type": "application/json"}
OLDER = "/api/prompt-learning/online/mipro/systems"


def refused(answer: httpx.Response, *, status: int) -> str:
    """The message, in either shape of errors."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    error = body["error"]
    message: str = error["message"] if isinstance(error, dict) else body["message"]
    return message


class TestJson:
    """JSON as attackers write it, to the API and to the proxy alike."""

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            pytest.param(b'{"a": NaN}', 400, "not valid JSON", id="NaN"),
            pytest.param(b'{"a": -Infinity}', 400, "not valid JSON", id="-Infinity"),
            pytest.param(b'{"a": 1e400}', 400, "infinity", id="1e400"),
            pytest.param(b'{"a": ' + b"1" * 5_000 + b"}", 400, "infinity", id="5000-digits"),
            pytest.param(b'{"a": "\\ud800"}', 400, "surrogate", id="lone-surrogate"),
            pytest.param(b'{"a": "\xff"}', 400, "UTF-8", id="latin-1"),
            pytest.param('{"a": 1}'.encode("utf-16"), 400, "UTF-8", id="utf-16"),
            pytest.param(b'\xef\xbb\xbf{"a": 1}', 400, "BOM", id="byte-order-mark"),
            pytest.param(b'{"a": 1} {}', 400, "after document", id="two-documents"),
            pytest.param(b"[" * 90_000, 400, "depth", id="90000-lists"),
            pytest.param(
                b'{"a": ' * 70 + b"1" + b"}" * 70, 400, "more than 64 levels", id="70-objects"
            ),
            # The time of compression would differ between two runs, and so would the test's id.
            pytest.param(gzip.compress(b'{"a": 1}', mtime=0), 415, "compressed", id="gzip"),
        ],
    )
    @pytest.mark.parametrize("place", ["API", "proxy"])
    def test_what_is_none_is_refused(
        self, caller: Caller, place: str, body: bytes, status: int, words: str
    ) -> None:
        session = caller.session()
        path = SESSIONS if place == "API" else chat_path(session, "r1")
        answer = caller.http.post(path, content=body, headers=JSON)
        assert words in refused(answer, status=status)

    def test_of_a_key_that_stands_twice_the_last_one_is_checked_and_sent(
        self, caller: Caller
    ) -> None:
        body = b'{"messages": [], ' + json.dumps(CHAT).encode()[1:]
        answer = caller.http.post(chat_path(caller.session(), "r1"), content=body, headers=JSON)
        assert answer.status_code == 200
        assert caller.upstream.received[0].raw.count(b'"messages"') == 1

    @pytest.mark.parametrize("branch", [b"{},", b"[[]],"])
    def test_too_many_branches_are_refused(self, branch: bytes) -> None:
        body = b"[" + branch * MOST_BRANCHES + b"{}]"
        with pytest.raises(ValueError, match="more than 500000 objects"):
            parse_json(body)

    def test_brackets_in_a_text_are_no_branches(self) -> None:
        text = "[{" * MOST_BRANCHES
        assert parse_json(json.dumps(text).encode()) == text
        assert parse_json(json.dumps({"a": text}).encode()) == {"a": text}

    def test_a_refusal_of_a_huge_value_takes_no_longer_than_reading_it(
        self, caller: Caller
    ) -> None:
        body = b"[" + b"{}," * 33_000 + b"0]"
        began = time.process_time()
        message = refused(caller.http.post(SESSIONS, content=body, headers=JSON), status=422)
        assert time.process_time() - began < 0.5
        assert len(message) < 200


class TestIds:
    """Ids are names, never ways."""

    @pytest.mark.parametrize(
        "session_id",
        [
            "%2e%2e",
            "%2e",
            "%00",
            "a%00",
            "a%0a",
            "a%0d%0aX:1",
            "%E2%80%AE",
            "%C0%AE",
            "a%ff",
            "%F0%9F%92%A9",
            "a;b",
            "a%3Fb",
            "~",
            "%",
            "%zz",
            "a" * 201,
        ],
    )
    @pytest.mark.parametrize("place", ["", "/events", "/prompt", "/export"])
    def test_what_is_no_id_is_refused(self, caller: Caller, session_id: str, place: str) -> None:
        answer = caller.http.get(f"{SESSIONS}/{session_id}{place}")
        assert "session_id is" in refused(answer, status=422)

    @pytest.mark.parametrize(
        "path",
        [
            "/api/v1/online/sessions/..%2f..",
            "/api/v1/online/sessions/a%2Fb/c",
            "/api//v1",
            "//health",
        ],
    )
    def test_slashes_lead_nowhere(self, caller: Caller, path: str) -> None:
        refused(caller.http.get(f"{caller.url}{path}"), status=404)

    @pytest.mark.parametrize("rollout_id", ["r\0", "../r", "r" * 201, "r r"])
    @pytest.mark.parametrize("named", ["rollout_id", "candidate_id"])
    def test_a_reward_cannot_wait_for_what_no_call_can_be_named(
        self, caller: Caller, rollout_id: str, named: str
    ) -> None:
        session_id = caller.session()["session_id"]
        body = {"reward_info": {"score": 1.0}, named: rollout_id}
        answer = caller.http.post(f"{SESSIONS}/{session_id}/reward", json=body)
        assert named in refused(answer, status=422)
        older = {"rollout_id": "r1", "status": "reward", "reward": 1.0, named: rollout_id}
        refused(caller.http.post(f"{OLDER}/{session_id}/status", json=older), status=422)

    def test_an_example_may_have_any_name_that_is_short(self, caller: Caller) -> None:
        session = caller.session()
        for number, (example_id, status) in enumerate({"größe\n": 200, "x" * 201: 422}.items()):
            caller.chat(session, f"r{number}")
            body = {
                "reward_info": {"score": 1.0},
                "rollout_id": f"r{number}",
                "metadata": {"example_id": example_id},
            }
            path = f"{SESSIONS}/{session['session_id']}/reward"
            assert caller.http.post(path, json=body).status_code == status

    @pytest.mark.parametrize("word", ["a\0b", "x" * 201])
    @pytest.mark.parametrize("named", ["correlation_id", "agent_id"])
    def test_those_of_a_session_too(self, caller: Caller, named: str, word: str) -> None:
        body = {"config_body": CONFIG, named: word}
        assert named in refused(caller.http.post(SESSIONS, json=body), status=422)

    @pytest.mark.parametrize("word", ["a\0b", "x" * 201])
    @pytest.mark.parametrize("named", ["correlation_id", "trace_ref"])
    def test_other_names_of_a_reward_are_short_and_printable(
        self, caller: Caller, named: str, word: str
    ) -> None:
        session_id = caller.session()["session_id"]
        body = {"reward_info": {"score": 1.0}, "rollout_id": "r1", named: word}
        answer = caller.http.post(f"{SESSIONS}/{session_id}/reward", json=body)
        assert named in refused(answer, status=422)


def cursor(*key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


class TestQueries:
    """Filters and cursors that databases would choke on."""

    @pytest.mark.parametrize(
        "key",
        [
            (10**30,),
            (10**30, "s"),
            (2**63, "s"),
            (5, "\ud800"),
            ("\ud800",),
            ("s", 10**30),
            (1e300, "a"),
        ],
    )
    @pytest.mark.parametrize(
        "place", [SESSIONS, "/api/systems/{}/candidates", "/api/systems/{}/seed-evals"]
    )
    def test_a_cursor_of_ones_own_making_is_refused(
        self, caller: Caller, place: str, key: tuple[Any, ...]
    ) -> None:
        path = place.format(caller.session()["session_id"])
        refused(caller.http.get(path, params={"cursor": cursor(*key)}), status=422)

    @pytest.mark.parametrize(
        "query",
        [
            "kind=%00&system_name=%00&system_id=%00",
            "kind=%ff%fe",
            "created_after=0001-01-01T00:00:00%2B23:59",
            "created_before=9999-12-31T23:59:59-23:59",
            "limit=" + "9" * 500,
            "limit=-1",
        ],
    )
    def test_odd_filters_find_what_there_is(self, caller: Caller, query: str) -> None:
        assert caller.http.get(f"{SESSIONS}?{query}").status_code == 200

    @pytest.mark.parametrize(
        "query", ["created_after=12345", "created_before=0.5", "state=%00", "limit=" + "9" * 5_000]
    )
    def test_what_is_no_filter_is_named(self, caller: Caller, query: str) -> None:
        answer = caller.http.get(f"{SESSIONS}?{query}")
        assert query.partition("=")[0] in refused(answer, status=422)
