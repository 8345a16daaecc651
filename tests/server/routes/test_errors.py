"""Refusals of the API: keys, bodies and paths, each with a status, a class name and a way out."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from prefect_mipro.errors import InputInvalid, MiproError, Overloaded, UpstreamFailed
from prefect_mipro.server.routes.errors import error_response
from tests.server.routes.conftest import CONFIG, KEY, LARGEST_BODY, SESSIONS, Caller

JSON = {"Content-Type": "application/json"}


def reward_path(caller: Caller) -> str:
    """Of a new session: what path names must be there before a body is looked at."""
    return f"{SESSIONS}/{caller.session()['session_id']}/reward"


def refusal(answer: httpx.Response, *, status: int, error: str) -> str:
    """The message of an answer that has this status and names this class."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert (body["error"], body["code"]) == (error, error)
    return str(body["message"])


class TestKeys:
    """The key, checked before anything else."""

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
            {"Authorization": "Bearer"},
            {"X-API-Key": ""},
            {"X-API-Key": "schlüssel".encode()},
        ],
    )
    def test_without_a_known_one_all_is_refused(
        self, caller: Caller, headers: dict[str, Any]
    ) -> None:
        answer = caller.program.get(SESSIONS, headers=headers)
        assert "Bearer" in refusal(answer, status=401, error="KeyRejected")
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": f"Bearer {KEY}"},
            {"Authorization": f"bearer  {KEY}"},
            {"Authorization": "Bearer another-key"},
            {"X-API-Key": KEY},
            {"Authorization": "Bearer sk-other", "X-API-Key": KEY},
        ],
    )
    def test_each_known_one_is_accepted_in_either_header(
        self, caller: Caller, headers: dict[str, str]
    ) -> None:
        assert caller.program.get(SESSIONS, headers=headers).status_code == 200

    def test_health_needs_none(self, caller: Caller) -> None:
        assert caller.program.get("/health").json()["status"] == "ok"

    @pytest.mark.parametrize("body", [b"x" * (LARGEST_BODY + 1), b"not json"])
    def test_it_is_checked_before_the_body(self, caller: Caller, body: bytes) -> None:
        answer = caller.program.post(SESSIONS, content=body, headers=JSON)
        refusal(answer, status=401, error="KeyRejected")


class TestBodies:
    """JSON that is none, and JSON that does not fit."""

    @pytest.mark.parametrize(
        "body",
        [
            b"not json",
            b'{"reward_info": {"score": NaN}}',
            b'{"reward_info": {"score": Infinity}}',
            b'{"metadata": ' + b"[" * 80 + b"]" * 80 + b"}",
            b"[" * 90_000,
            b"\xff",
        ],
    )
    def test_broken_json_is_a_bad_request(self, caller: Caller, body: bytes) -> None:
        answer = caller.http.post(reward_path(caller), content=body, headers=JSON)
        refusal(answer, status=400, error="InputInvalid")

    def test_one_too_large_is_refused(self, caller: Caller) -> None:
        answer = caller.http.post(SESSIONS, content=b" " * (LARGEST_BODY + 1), headers=JSON)
        assert "--max-body-bytes" in refusal(answer, status=413, error="BodyTooLarge")

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
    def test_another_content_type_is_refused(self, caller: Caller, content_type: str) -> None:
        answer = caller.http.post(SESSIONS, content=b"{}", headers={"Content-Type": content_type})
        message = refusal(answer, status=415, error="InputInvalid")
        assert content_type in message
        assert "application/json" in message

    def test_a_content_type_with_parameters_is_taken(self, caller: Caller) -> None:
        answer = caller.http.post(
            SESSIONS,
            content=json.dumps({"config_body": CONFIG}),
            headers={"Content-Type": "application/json; charset=utf-8"},
        )
        assert answer.status_code == 201

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, "reward_info is missing"),
            ([], "the body is []"),
            ({"reward_info": 5}, "reward_info is 5"),
            ({"reward_info": {}, "stop": "perhaps"}, "stop is 'perhaps'"),
        ],
    )
    def test_what_does_not_fit_is_named(self, caller: Caller, body: Any, message: str) -> None:
        answer = caller.http.post(reward_path(caller), json=body)
        assert message in refusal(answer, status=422, error="InputInvalid")

    def test_an_empty_body_is_named(self, caller: Caller) -> None:
        answer = caller.http.post(reward_path(caller))
        assert "the body is missing" in refusal(answer, status=422, error="InputInvalid")

    def test_long_input_makes_no_long_error(self, caller: Caller) -> None:
        body = {"session_id": "x" * 50_000, "kind": ["y" * 1_000] * 30, "metadata": "z" * 2_000}
        answer = caller.http.post(SESSIONS, json=body)
        refusal(answer, status=422, error="InputInvalid")
        assert len(answer.content) < 4_096

    def test_a_config_of_another_algorithm_is_refused_by_its_key(self, caller: Caller) -> None:
        config = {"prompt_learning": {"algorithm": "gepa"}}
        answer = caller.http.post(SESSIONS, json={"config_body": config})
        message = refusal(answer, status=422, error="ConfigInvalid")
        assert "prompt_learning.algorithm is 'gepa'" in message


class TestPaths:
    """Places that are not there."""

    @pytest.mark.parametrize(
        "path", ["/", "/api", "/api/v2/x", f"{SESSIONS}/", f"{SESSIONS}/a/b/c", "/health/"]
    )
    def test_an_unknown_path_is_not_found_and_never_redirected(
        self, caller: Caller, path: str
    ) -> None:
        assert path in refusal(caller.http.get(path), status=404, error="NotFound")

    def test_a_method_that_is_not_possible_is_said_so(self, caller: Caller) -> None:
        answer = caller.http.delete(SESSIONS)
        message = refusal(answer, status=405, error="InputInvalid")
        assert "DELETE is not possible" in message
        assert answer.headers["allow"] == "GET, POST"

    def test_the_proxys_unknown_paths_answer_in_openais_shape(self, caller: Caller) -> None:
        answer = caller.http.post("/api/mipro/v1/s/r/embeddings")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NotFound")
        answer = caller.http.get("/api/mipro/v1/s/r/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "InputInvalid")

    @pytest.mark.parametrize("session_id", ["a%20b", "-a", "x" * 201, "a%00", "a%22"])
    def test_a_session_id_that_cannot_be_one_is_refused(
        self, caller: Caller, session_id: str
    ) -> None:
        answer = caller.http.get(f"{SESSIONS}/{session_id}")
        assert "session_id is" in refusal(answer, status=422, error="InputInvalid")

    def test_an_unknown_session_is_not_found(self, caller: Caller) -> None:
        answer = caller.http.get(f"{SESSIONS}/nobody")
        assert "'nobody'" in refusal(answer, status=404, error="SessionNotFound")


class TestShape:
    """The answer an error becomes."""

    def answer(self, error: MiproError, path: str = "/api") -> tuple[Any, Any]:
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        answer = error_response(Request(scope), error)
        return answer, json.loads(bytes(answer.body))

    def test_a_wait_is_told_in_whole_seconds(self) -> None:
        answer, _ = self.answer(Overloaded("busy", retry_after_seconds=1.2))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")

    def test_detail_travels(self) -> None:
        _, body = self.answer(InputInvalid("no", detail={"key": [1]}))
        assert body["detail"] == {"key": [1]}

    @pytest.mark.parametrize("detail", ["x" * 5_000, object()])
    def test_detail_that_cannot_travel_stays(self, detail: object) -> None:
        _, body = self.answer(InputInvalid("no", detail=detail))
        assert body == {"error": "InputInvalid", "message": "no", "code": "InputInvalid"}

    def test_a_status_that_is_no_error_becomes_500(self) -> None:
        answer, _ = self.answer(MiproError("odd", status=0))
        assert answer.status_code == 500

    def test_an_error_after_the_choice_names_candidate_and_rollout(self) -> None:
        chosen = {"candidate_id": "c", "rollout_id": "r", "prompt": "applied"}
        error = UpstreamFailed("no", detail=chosen)
        answer, body = self.answer(error, "/api/mipro/v1/s/r/chat/completions")
        assert answer.headers["x-mipro-candidate-id"] == "c"
        assert answer.headers["x-mipro-rollout-id"] == "r"
        assert answer.headers["x-mipro-prompt"] == "applied"
        assert body["error"]["type"] == "server_error"
