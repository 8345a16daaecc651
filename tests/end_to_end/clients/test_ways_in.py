"""Rollout, correlation and example can be named by all means that the official client has."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from prefect_mipro.errors import InputInvalid
from tests.end_to_end.clients.conftest import MESSAGES, Place
from tests.server.scripted_upstream import COMPLETION, answers

CHAT: dict[str, Any] = {"model": "m", "messages": MESSAGES}


def served(client: openai.OpenAI, **more: Any) -> str:
    """The rollout that a call belonged to."""
    raw = client.chat.completions.with_raw_response.create(**CHAT, **more)
    assert raw.headers["x-mipro-candidate-id"]
    return str(raw.headers["x-mipro-rollout-id"])


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_path_of_the_base_url(place: Place, ending: str) -> None:
    with openai.OpenAI(base_url=f"{place.session_url}/r1{ending}", api_key="x") as client:
        assert served(client) == "r1"


def test_a_copy_of_the_client_for_each_rollout(client: openai.OpenAI, place: Place) -> None:
    other = client.with_options(base_url=f"{place.session_url}/r2")
    assert (served(client), served(other)) == ("r1", "r2")


@pytest.mark.parametrize(
    "more",
    [
        {"extra_headers": {"x-mipro-rollout-id": "r7"}},
        {"extra_headers": {"X-Mipro-Rollout-Id": "r7"}, "extra_query": {"cid": "r8"}},
        {"extra_query": {"cid": "r7"}},
    ],
)
def test_a_header_or_the_query_of_one_call(place: Place, more: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=place.session_url, api_key="x") as client:
        assert served(client, **more) == "r7"


def test_the_default_query_of_the_client(place: Place) -> None:
    with openai.OpenAI(
        base_url=place.session_url, api_key="x", default_query={"cid": "r7"}
    ) as client:
        assert served(client) == "r7"


def test_the_default_headers_of_the_client(place: Place) -> None:
    with openai.OpenAI(
        base_url=place.session_url,
        api_key="x",
        default_headers={"x-mipro-rollout-id": "r7", "x-correlation-id": "run-1"},
    ) as client:
        assert served(client) == "r7"
    receipt = place.session.update_reward(reward_info={"score": 1}, correlation_id="run-1")
    assert receipt["rollout_id"] == "r7"


def test_the_path_goes_before_the_header(client: openai.OpenAI) -> None:
    assert served(client, extra_headers={"x-mipro-rollout-id": "r7"}) == "r1"


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_name_is_none(place: Place, value: str | None) -> None:
    headers = {} if value is None else {"x-mipro-rollout-id": value}
    with openai.OpenAI(base_url=place.session_url, api_key="x") as client:
        assert served(client, extra_headers=headers).startswith("rollout_")


@pytest.mark.parametrize("value", ["a b", "../x", "é", "-r", "r" * 201, "a/b"])
def test_a_name_that_no_path_can_carry_is_refused(place: Place, value: str) -> None:
    with (
        openai.OpenAI(base_url=place.session_url, api_key="x") as client,
        pytest.raises(openai.UnprocessableEntityError, match="the rollout id is"),
    ):
        served(client, extra_query={"cid": value})
    assert place.upstream.received == []


@pytest.mark.parametrize(
    "more",
    [{"extra_headers": {"x-mipro-example-id": "7"}}, {"extra_query": {"example_id": "7"}}],
)
def test_the_example_is_kept_with_the_rollout(
    client: openai.OpenAI, place: Place, more: dict[str, Any]
) -> None:
    served(client, **more)
    place.session.update_reward(reward_info={"score": 1}, rollout_id="r1")
    assert [(entry["rollout_id"], entry["seed"]) for entry in place.seed_evals()] == [("r1", 7)]


def test_the_path_may_end_in_a_slash(plain: httpx.Client) -> None:
    assert plain.post("/chat/completions/", json=CHAT).status_code == 200
    assert plain.get("/models/").status_code == 200


@pytest.mark.parametrize("rollout", ["", "/r1"])
@pytest.mark.parametrize("ending", ["/v1", "/v1/", "/v1/v1"])
def test_a_version_behind_the_base_url_is_no_rollout(
    place: Place, rollout: str, ending: str
) -> None:
    with httpx.Client() as plain:
        base_url = f"{place.session_url}{rollout}{ending}"
        answers = [plain.post(f"{base_url}/chat/completions", json=CHAT) for _ in range(2)]
        models = plain.get(f"{base_url}/models/the-policy-model")
    ids = {answer.headers["x-mipro-rollout-id"] for answer in answers}
    assert ids == {"r1"} if rollout else len(ids) == 2
    assert models.json()["id"] == "the-policy-model"


def test_a_rollout_cannot_be_called_as_a_version_is(place: Place) -> None:
    with (
        openai.OpenAI(base_url=f"{place.session_url}/v1", api_key="x") as client,
        pytest.raises(openai.UnprocessableEntityError, match=r"the rollout id is 'v1'.*another"),
    ):
        served(client, extra_headers={"x-mipro-rollout-id": "v1"})
    with pytest.raises(InputInvalid, match="cannot be called v1"):
        place.session.lease("v1", inputs={})


@pytest.mark.parametrize("base", ["/r1/", "/r1/v1/", "/r1//v1"])
def test_the_base_url_of_a_rollout_may_have_a_slash_too_many(place: Place, base: str) -> None:
    answer = httpx.post(f"{place.session_url}{base}/chat/completions", json=CHAT)
    assert answer.headers["x-mipro-rollout-id"] == "r1"


def test_an_empty_rollout_in_the_path_is_refused(place: Place) -> None:
    with httpx.Client() as plain:
        for path in ("//chat/completions", "//v1/chat/completions"):
            assert plain.post(place.session_url + path, json=CHAT).status_code == 404


@pytest.mark.parametrize("path", ["/r2/chat/completions", "/chat", "/chat/completions/more", "/"])
def test_other_paths_say_what_is_served(plain: httpx.Client, path: str) -> None:
    answer = plain.post(path, json=CHAT)
    assert answer.status_code == 404
    assert "chat/completions" in answer.json()["error"]["message"]


def test_a_query_in_the_base_url_is_explained(place: Place) -> None:
    with (
        openai.OpenAI(base_url=f"{place.session_url}?cid=r7", api_key="x") as client,
        pytest.raises(openai.NotFoundError, match="default query"),
    ):
        served(client)


def test_a_get_of_the_completions_is_not_possible(plain: httpx.Client, place: Place) -> None:
    answer = plain.get("/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert place.session_url.rpartition(".")[2] not in answer.text


@pytest.mark.parametrize("header", ["x-mipro-candidate-id", "x-mipro-rollout-id"])
def test_each_answer_names_candidate_and_rollout(
    plain: httpx.Client, place: Place, header: str
) -> None:
    place.script(answers(200, b"<html>"), answers(401), answers(200, b'{"choices": []}'))
    answered = [plain.post("/chat/completions", json=CHAT) for _ in range(4)]
    assert [answer.status_code for answer in answered] == [502, 401, 502, 200]
    assert len({answer.headers[header] for answer in answered}) == 1
    assert answered[-1].json() == COMPLETION


def test_a_paused_and_a_cancelled_session_go_on_answering(
    client: openai.OpenAI, place: Place
) -> None:
    place.session.pause()
    assert served(client) == "r1"
    place.session.cancel()
    assert served(client) == "r1"
