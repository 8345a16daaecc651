"""The calls of a MiproOnlineSession: what each asks and answers, as X and as X_async."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.errors import NotFound
from tests.client.backend import Answer, Backend
from tests.client.conftest import Call

SESSION = "/api/v1/online/sessions/s"


def test_the_online_url_is_read_from_the_status(call: Call, backend: Backend) -> None:
    backend.answers({"proxy_url": "http://h/p"})
    url = call(
        MiproOnlineSession, "get_online_url", "s", backend_url=backend.url, correlation_id="c"
    )
    assert url == "http://h/p"
    assert backend.asked == [("GET", SESSION)]
    assert backend.last.query == {}


def test_the_online_url_is_asked_for_when_the_status_lacks_it(call: Call, backend: Backend) -> None:
    backend.answers({}, {"online_url": "http://h/o"})
    url = call(
        MiproOnlineSession, "get_online_url", "s", backend_url=backend.url, correlation_id="c"
    )
    assert url == "http://h/o"
    assert backend.asked == [("GET", SESSION), ("GET", f"{SESSION}/prompt")]
    assert backend.last.query == {"correlation_id": "c"}


def test_no_online_url_at_all_is_an_error(call: Call, backend: Backend) -> None:
    with pytest.raises(ValueError, match="Missing online_url in response"):
        call(MiproOnlineSession, "get_online_url", "s", backend_url=backend.url)
    assert len(backend.received) == 2


def test_prompt_urls_are_always_all_three(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"online_url": "http://h/o", "extra": 1}, {})
    assert call(session, "get_prompt_urls") == {
        "online_url": "http://h/o",
        "proxy_url": None,
        "chat_completions_url": "http://h/o/chat/completions",
        "extra": 1,
    }
    assert set(call(session, "get_prompt_urls").values()) == {None}


def test_prompt_urls_are_asked_for_with_a_correlation_id(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    call(session, "get_prompt_urls")
    assert backend.last.query == {}
    session.correlation_id = "mine"
    call(session, "get_prompt_urls")
    assert backend.last.query == {"correlation_id": "mine"}
    call(session, "get_prompt_urls", correlation_id="other")
    assert backend.last.query == {"correlation_id": "other"}


def test_a_status_is_answered_unchanged(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"anything": [1, None]})
    assert call(session, "status") == {"anything": [1, None]}
    assert backend.asked == [("GET", SESSION)]


@pytest.mark.parametrize(
    ("name", "state"), [("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")]
)
def test_a_state_change_patches_the_session(
    call: Call, backend: Backend, session: MiproOnlineSession, name: str, state: str
) -> None:
    backend.answers({"state": state})
    assert call(session, name) == {"state": state}
    assert backend.asked == [("PATCH", SESSION)]
    assert backend.last.body == {"state": state}


def test_a_deletion_deletes_the_session(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"session_id": "s", "deleted": True})
    assert call(session, "delete") == {"session_id": "s", "deleted": True}
    assert backend.asked == [("DELETE", SESSION)]


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ({"reward_info": {}}, {"reward_info": {}}),
        (
            {"reward_info": {"score": None}, "rollout_id": "", "trace_ref": ""},
            {"reward_info": {"score": None}},
        ),
        ({"reward_info": {"score": np.True_}}, {"reward_info": {"score": 1.0}}),
        (
            {
                "reward_info": {"score": 1, "feedback": "good"},
                "artifact": {},
                "metadata": {},
                "correlation_id": "c",
                "rollout_id": "r",
                "candidate_id": "k",
                "trace_ref": "t",
                "stop": False,
            },
            {
                "reward_info": {"score": 1, "feedback": "good"},
                "artifact": {},
                "metadata": {},
                "correlation_id": "c",
                "rollout_id": "r",
                "candidate_id": "k",
                "trace_ref": "t",
                "stop": False,
            },
        ),
    ],
)
def test_a_reward_sends_what_is_given(
    call: Call,
    backend: Backend,
    session: MiproOnlineSession,
    arguments: dict[str, Any],
    body: dict[str, Any],
) -> None:
    backend.answers({"status": "accepted"})
    assert call(session, "update_reward", **arguments) == {"status": "accepted"}
    assert backend.asked == [("POST", f"{SESSION}/reward")]
    assert backend.last.body == body


def test_a_reward_carries_the_sessions_correlation_id(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    session.correlation_id = "mine"
    call(session, "update_reward", reward_info={})
    assert backend.last.body["correlation_id"] == "mine"


@pytest.mark.parametrize(
    "reward_info", [None, 1.0, {1: 2}, {"score": {1}}, {"score": float("nan")}]
)
def test_a_reward_that_is_no_json_object_is_a_value_error(
    call: Call, backend: Backend, session: MiproOnlineSession, reward_info: Any
) -> None:
    with pytest.raises(ValueError, match="reward_info"):
        call(session, "update_reward", reward_info=reward_info)
    assert backend.received == []


def test_candidates_are_listed_by_page(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"items": [], "next_cursor": None})
    call(session, "list_candidates")
    assert backend.asked == [("GET", "/api/systems/s/candidates")]
    assert backend.last.query == {"limit": "100"}
    wanted = {
        "job_id": "pl_1",
        "algorithm": "mipro",
        "mode": "online",
        "status": "evaluated",
        "cursor": "c",
        "sort": "objective:desc",
        "include": "prompt_text",
    }
    call(session, "list_candidates", limit=5_000, **wanted)
    assert backend.last.query == {**wanted, "limit": "1000"}


def test_seed_evals_are_listed_by_page(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    wanted = {"job_id": "pl_1", "candidate_id": "k", "split": "train", "cursor": "c"}
    call(session, "list_seed_evals", seed=0, success=True, limit=0, **wanted)
    assert backend.asked == [("GET", "/api/systems/s/seed-evals")]
    assert backend.last.query == {**wanted, "seed": "0", "success": "True", "limit": "1"}


def test_a_candidate_of_the_session_is_answered(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"candidate_id": "k", "system_id": "s"})
    assert call(session, "get_candidate", "k") == {"candidate_id": "k", "system_id": "s"}
    assert backend.asked == [("GET", "/api/candidates/k")]


def test_a_candidate_of_another_session_is_refused(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"candidate_id": "k", "system_id": "other"})
    with pytest.raises(ValueError, match="does not belong"):
        call(session, "get_candidate", "k")


def test_a_candidate_that_names_no_session_is_looked_up_among_the_sessions_own(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers(
        {"candidate_id": "baseline"},
        {"items": [{"candidate_id": "a"}, 5], "next_cursor": "more"},
        {"items": [{"candidate_id": "baseline", "mine": True}]},
    )
    assert call(session, "get_candidate", "baseline")["mine"] is True
    assert [each.query for each in backend.received] == [
        {},
        {"limit": "200"},
        {"limit": "200", "cursor": "more"},
    ]


@pytest.mark.parametrize(
    "page", [{}, {"items": []}, {"items": [{"candidate_id": "a"}], "next_cursor": " "}]
)
def test_a_candidate_that_is_not_among_them_is_an_error(
    call: Call, backend: Backend, session: MiproOnlineSession, page: dict[str, Any]
) -> None:
    backend.answers({"candidate_id": "k", "system_id": None}, page)
    with pytest.raises(ValueError, match="not found"):
        call(session, "get_candidate", "k")
    assert len(backend.received) == 2


def test_an_unknown_candidate_is_not_found(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers(Answer({"error": "CandidateNotFound", "message": "none"}, status=404))
    with pytest.raises(NotFound):
        call(session, "get_candidate", "k")
    assert len(backend.received) == 1


def test_a_jobs_candidate_is_asked_of_the_job_first(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers({"candidate_id": "k"}, Answer({}, status=500), {"candidate_id": "k"})
    of_job = ("GET", "/api/v1/offline/jobs/pl_1/candidates/k")
    call(session, "get_candidate", "k", job_id="pl_1")
    assert backend.asked == [of_job]
    call(session, "get_candidate", "k", job_id="pl_1")
    assert backend.asked == [of_job, of_job, ("GET", "/api/candidates/k")]


@pytest.mark.parametrize(("candidate_id", "job_id"), [("k", "job_1"), (" ", None), (" ", "pl_1")])
def test_an_unusable_id_is_a_value_error(
    call: Call,
    backend: Backend,
    session: MiproOnlineSession,
    candidate_id: str,
    job_id: str | None,
) -> None:
    with pytest.raises(ValueError, match="_id is"):
        call(session, "get_candidate", candidate_id, job_id=job_id)
    assert backend.received == []
