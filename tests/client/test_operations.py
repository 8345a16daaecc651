"""What each endpoint is asked, and how its answer is read."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.client import operations
from prefect_mipro.client.answers import with_urls
from prefect_mipro.client.operations import Operation, raw
from prefect_mipro.errors import AnswerInvalid, InputInvalid
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionState, SystemRequest
from tests.client.backend import STATUS

SESSION = "/api/v1/online/sessions/s"


@pytest.mark.parametrize(
    ("operation", "method", "path", "query"),
    [
        (operations.session_status("s"), "GET", SESSION, {}),
        (operations.session_urls("s"), "GET", f"{SESSION}/prompt", {}),
        (
            operations.session_urls("s", correlation_id="run-7"),
            "GET",
            f"{SESSION}/prompt",
            {"correlation_id": "run-7"},
        ),
        (operations.sessions(), "GET", "/api/v1/online/sessions", {"limit": "100"}),
        (
            operations.sessions(state="paused", system_name="bot", limit=5, cursor="c"),
            "GET",
            "/api/v1/online/sessions",
            {"state": "paused", "system_name": "bot", "limit": "5", "cursor": "c"},
        ),
        (operations.events("s"), "GET", f"{SESSION}/events", {"since_seq": "0", "limit": "500"}),
        (
            operations.examples("s", "cand_1", limit=9),
            "GET",
            f"{SESSION}/examples",
            {"candidate_id": "cand_1", "limit": "9"},
        ),
        (operations.candidates("s"), "GET", "/api/systems/s/candidates", {"limit": "100"}),
        (
            operations.candidates("s", status="evaluated", sort="objective:desc", include="a,b"),
            "GET",
            "/api/systems/s/candidates",
            {"status": "evaluated", "limit": "100", "sort": "objective:desc", "include": "a,b"},
        ),
        (operations.candidate("cand_1"), "GET", "/api/candidates/cand_1", {}),
        (
            operations.job_candidate("pl_1", "cand_1"),
            "GET",
            "/api/v1/offline/jobs/pl_1/candidates/cand_1",
            {},
        ),
        (
            operations.seed_evals("s", split="train", seed=0, success=False),
            "GET",
            "/api/systems/s/seed-evals",
            {"split": "train", "seed": "0", "success": "False", "limit": "100"},
        ),
        (
            operations.add_candidate("s", "Classify."),
            "POST",
            "/api/systems/s/candidates",
            {},
        ),
        (operations.rotate_url("s"), "POST", "/api/v1/online/sessions/s/proxy-token", {}),
        (operations.delete_session("s"), "DELETE", "/api/v1/online/sessions/s", {}),
        (operations.health(), "GET", "/health", {}),
        (operations.ready(), "GET", "/ready", {}),
    ],
)
def test_an_operation_says_what_to_ask(
    operation: Operation[object], method: str, path: str, query: dict[str, str]
) -> None:
    assert (operation.method, operation.path, operation.query) == (method, path, query)


@pytest.mark.parametrize(("asked", "sent"), [(0, "1"), (-5, "1"), (1_000, "1000"), (5_000, "1000")])
def test_a_page_has_between_one_and_a_thousand_items(asked: int, sent: str) -> None:
    assert operations.candidates("s", limit=asked).query["limit"] == sent


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (SessionState.PAUSED, "paused"),
        (SessionState.RUNNING, "running"),
        (SessionState.CANCELLED, "cancelled"),
    ],
)
def test_a_state_change_sends_the_word_of_the_state(state: SessionState, word: str) -> None:
    operation = operations.change_state("s", state)
    assert (operation.method, operation.path) == ("PATCH", SESSION)
    assert operation.body == {"state": word}


def test_create_sends_what_the_protocol_asks_for_and_no_more() -> None:
    request = CreateSession(
        session_id="support-bot", config_body={"prompt_learning": {"wait": None}}
    )
    assert operations.create_session(request).body == {
        "kind": "mipro_online",
        "technique": "discrete_optimization",
        "system": {"name": "support-bot"},
        "session_id": "support-bot",
        "config_body": {"prompt_learning": {"wait": None}},
        "overrides": {},
        "metadata": {},
    }


def test_create_keeps_a_system_that_the_caller_names() -> None:
    request = CreateSession(config_name="c", system=SystemRequest(name="bot", id="b1"))
    body = operations.create_session(request).body
    assert body is not None
    assert body["system"] == {"name": "bot", "id": "b1"}


def test_create_without_an_id_names_its_system_by_the_request() -> None:
    operation = operations.create_session(CreateSession(config_name="c"), request_key="k1")
    assert operation.body is not None
    assert operation.body["system"] == {"name": "k1"}
    assert operation.headers == {"Idempotency-Key": "k1"}


def test_every_request_has_a_key_of_its_own() -> None:
    request = RewardRequest(reward_info={"score": 1.0})
    keys = {operations.reward("s", request).headers["Idempotency-Key"] for _ in range(10)}
    assert len(keys) == 10


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (RewardRequest(reward_info={}), {"reward_info": {}}),
        (
            RewardRequest(reward_info={"score": None}, artifact={}, metadata={}, stop=False),
            {"reward_info": {"score": None}, "artifact": {}, "metadata": {}, "stop": False},
        ),
        (
            RewardRequest(reward_info={"score": 1}, rollout_id="r", candidate_id="c"),
            {"reward_info": {"score": 1}, "rollout_id": "r", "candidate_id": "c"},
        ),
    ],
)
def test_a_reward_sends_what_is_given(request_: RewardRequest, body: dict[str, Any]) -> None:
    operation = operations.reward("s", request_)
    assert (operation.method, operation.path) == ("POST", f"{SESSION}/reward")
    assert operation.body == body


def test_only_a_candidate_of_ones_own_is_not_repeatable() -> None:
    request = RewardRequest(reward_info={})
    assert operations.create_session(CreateSession(config_name="c")).repeatable
    assert operations.reward("s", request).repeatable
    assert operations.change_state("s", SessionState.PAUSED).repeatable
    assert operations.session_status("s").repeatable
    assert not operations.add_candidate("s", "Classify.").repeatable


@pytest.mark.parametrize(
    ("session_id", "path"),
    [
        ("a/b", f"{SESSION[:-1]}a%2Fb"),
        ("a?b#c", f"{SESSION[:-1]}a%3Fb%23c"),
        ("ü", f"{SESSION[:-1]}%C3%BC"),
        ("a.b:c~d", f"{SESSION[:-1]}a.b:c~d"),
    ],
)
def test_an_id_stays_one_segment_of_the_path(session_id: str, path: str) -> None:
    assert operations.session_status(session_id).path == path


@pytest.mark.parametrize("session_id", ["", "  ", ".", ".."])
def test_an_id_that_would_lead_elsewhere_is_refused(session_id: str) -> None:
    with pytest.raises(InputInvalid, match="session_id"):
        operations.session_status(session_id)


def test_a_job_id_starts_with_pl() -> None:
    with pytest.raises(InputInvalid, match="'pl_'"):
        operations.job_candidate("job_1", "cand_1")


@pytest.mark.parametrize(
    ("answer", "urls"),
    [
        ({}, (None, None, None)),
        (
            {"proxy_url": "http://h/p"},
            ("http://h/p", "http://h/p", "http://h/p/chat/completions"),
        ),
        (
            {"online_url": "", "proxy_url": "http://h/p/"},
            ("http://h/p/", "http://h/p/", "http://h/p/chat/completions"),
        ),
        (
            {"online_url": "http://h/o/chat/completions"},
            (None, "http://h/o/chat/completions", "http://h/o/chat/completions"),
        ),
        (
            {"online_url": "http://h/o", "chat_completions_url": "http://h/c"},
            (None, "http://h/o", "http://h/c"),
        ),
    ],
)
def test_urls_follow_from_one_another(answer: dict[str, Any], urls: tuple[str | None, ...]) -> None:
    filled = with_urls({**answer, "extra": 1})
    found = (filled["proxy_url"], filled["online_url"], filled["chat_completions_url"])
    assert found == urls
    assert filled["extra"] == 1


def test_session_urls_understand_an_older_backend() -> None:
    urls = operations.session_urls("s").answer({"proxy_url": "http://h/p"})
    assert urls.online_url == "http://h/p"
    assert urls.chat_completions_url == "http://h/p/chat/completions"


def test_session_urls_lack_of_any_url_is_an_error() -> None:
    with pytest.raises(AnswerInvalid, match="Missing online_url"):
        operations.session_urls("s").answer({})


def test_a_status_is_read_as_a_record() -> None:
    assert operations.session_status("s").answer(STATUS).session_id == "support-bot"


def test_a_raw_operation_answers_what_came() -> None:
    operation = operations.session_status("s")
    as_it_came = raw(operation)
    assert as_it_came.answer({"any": "thing"}) == {"any": "thing"}
    assert (as_it_came.method, as_it_came.path) == (operation.method, operation.path)
