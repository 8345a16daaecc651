"""Whatever goes wrong, the official client raises the class that it has for it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.clients.conftest import KEY, MESSAGES, Place
from tests.server.scripted_upstream import answers, drop

CHAT: dict[str, Any] = {"model": "m", "messages": MESSAGES}
TOLD = {"message": "told so", "type": "some_error", "param": "messages", "code": "some_code"}
CLASSES = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (503, openai.InternalServerError),
]
# What servers answer that do not speak OpenAI's shape, and the text that a caller must see.
SHAPES = [
    (b"out of order\n", "out of order"),
    (b"", "did not say why"),
    (b"<!doctype html><html><title>502 Bad\nGateway</title><p>x</p></html>", "502 Bad Gateway"),
    (b"<html><body>no title", "did not say why"),
    (b"\xff\xfe broken", "broken"),
    (b'"just text"', "just text"),
    (b"{}", "did not say why"),
    (b'{"error": "model not found"}', "model not found"),
    (b'{"error": {"type": "x"}}', "did not say why"),
    (b'{"error": null, "message": "late"}', "late"),
    (b'{"detail": "too long"}', "too long"),
    (
        b'{"detail": [{"loc": ["body", "model"], "msg": "field required"}, {"msg": "and so on"}]}',
        "body.model: field required; and so on",
    ),
    (b'{"message": {"detail": [{"msg": "extra field"}]}, "object": "error"}', "extra field"),
    (b'[{"error": {"code": 400, "message": "bad key", "status": "INVALID"}}]', "bad key"),
    (b'{"title": "Conflict", "type": "about:blank", "status": 409}', "Conflict"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "error"), CLASSES)
def test_the_models_refusals_raise_their_class(
    client: openai.OpenAI,
    place: Place,
    status: int,
    error: type[openai.APIStatusError],
    stream: bool,
) -> None:
    body = json.dumps({"error": TOLD}).encode()
    place.script(*[answers(status, body, retry_after="60", x_request_id="req_1")] * 2)
    with pytest.raises(error) as caught:
        client.chat.completions.create(**CHAT, stream=stream)
    raised = caught.value
    assert raised.status_code == status
    assert "told so" in raised.message
    assert (raised.type, raised.param, raised.code) == ("some_error", "messages", "some_code")
    assert raised.request_id == "req_1"
    assert raised.response.content == body
    assert raised.response.headers["retry-after"] == "60"
    assert raised.response.headers["x-mipro-candidate-id"]
    assert raised.response.headers["x-mipro-rollout-id"] == "r1"


@pytest.mark.parametrize(("body", "text"), SHAPES)
def test_other_shapes_become_openais(
    plain: httpx.Client, place: Place, body: bytes, text: str
) -> None:
    place.answer(body, status=400, content_type="text/html")
    answer = plain.post("/chat/completions", json=CHAT)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert text in error["message"]
    if not body.startswith(b"[{"):
        assert error.keys() >= {"message", "type", "param", "code"}


def test_a_flat_error_keeps_what_it_says(client: openai.OpenAI, place: Place) -> None:
    flat = {"object": "error", **TOLD, "code": 40, "x_hint": "shorter"}
    place.answer(json.dumps(flat).encode(), status=400)
    with pytest.raises(openai.BadRequestError, match="told so") as caught:
        client.chat.completions.create(**CHAT)
    assert caught.value.body == {**TOLD, "code": 40}
    assert caught.value.response.json()["x_hint"] == "shorter"


def test_a_long_page_is_cut(plain: httpx.Client, place: Place) -> None:
    place.answer(b"x" * 100_000, status=500)
    answer = plain.post("/chat/completions", json=CHAT)
    assert len(answer.json()["error"]["message"]) == 1_000


def test_an_answer_that_is_no_completion_is_a_server_error(
    client: openai.OpenAI, place: Place
) -> None:
    place.answer(b"<html>busy</html>", content_type="text/html")
    with pytest.raises(openai.InternalServerError, match="nonsense") as caught:
        client.chat.completions.create(**CHAT)
    assert caught.value.status_code == 502
    assert caught.value.response.headers["x-mipro-candidate-id"]


def test_a_model_out_of_reach_is_a_server_error(client: openai.OpenAI, place: Place) -> None:
    place.script(*[drop] * 3)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT)
    assert (caught.value.status_code, caught.value.code) == (502, "UpstreamUnreachable")
    assert caught.value.response.headers["x-mipro-candidate-id"]


def test_the_client_itself_repeats_what_may_be_repeated(place: Place) -> None:
    place.script(answers(500, b"busy"), answers(500, b"busy"))
    with openai.OpenAI(base_url=place.url, api_key="none", max_retries=2) as client:
        assert client.chat.completions.create(**CHAT).choices
    assert place.candidate()["rollout_count"] == 1


def test_a_server_may_forbid_it(place: Place) -> None:
    place.script(answers(500, b"never again", x_should_retry="false"))
    with (
        openai.OpenAI(base_url=place.url, api_key="none", max_retries=2) as client,
        pytest.raises(openai.InternalServerError, match="never again"),
    ):
        client.chat.completions.create(**CHAT)
    assert len(place.upstream.received) == 1


class TestOurOwn:
    """Errors that the proxy itself has."""

    def test_a_wrong_key(self, place: Place) -> None:
        url = self.keyed_url(place)
        with (
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="online_url"),
        ):
            client.chat.completions.create(**CHAT)

    def test_the_right_key(self, place: Place) -> None:
        with openai.OpenAI(base_url=self.keyed_url(place), api_key=KEY) as client:
            assert client.chat.completions.create(**CHAT).choices

    def test_no_such_session(self, place: Place) -> None:
        url = self.keyed_url(place).replace(place.session.session_id, "nobody")
        with (
            openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client,
            pytest.raises(openai.NotFoundError, match="nobody"),
        ):
            client.chat.completions.create(**CHAT)

    def test_no_messages(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="messages is \\[\\]"):
            client.chat.completions.create(model="m", messages=[])

    def keyed_url(self, place: Place) -> str:
        """The session's URL without its secret."""
        return place.session_url.rpartition(".")[0]


class TestOtherWays:
    """What OpenAI serves and a session does not."""

    def test_the_models_are_the_policy_model(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["the-policy-model"]
        assert client.models.retrieve("the-policy-model").owned_by == "prefect-mipro"

    def test_another_model_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="the-policy-model"):
            client.models.retrieve("meta/another")

    @pytest.mark.parametrize("path", ["embeddings", "completions", "responses", "moderations"])
    def test_other_endpoints_are_not_found(self, client: openai.OpenAI, path: str) -> None:
        with pytest.raises(openai.NotFoundError, match="chat/completions") as caught:
            client.post(f"/{path}", body={"model": "m", "input": "x"}, cast_to=object)
        assert path in caught.value.message
        assert caught.value.type == "not_found_error"

    def test_embeddings_by_the_clients_own_method(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="m", input="x")

    def test_the_secret_of_the_url_is_not_repeated(self, plain: httpx.Client, place: Place) -> None:
        answer = plain.post("/embeddings", json={})
        assert place.session_url.rpartition(".")[2] not in answer.text
