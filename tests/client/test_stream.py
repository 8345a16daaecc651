"""A long answer, line by line, from a real server on loopback."""

from __future__ import annotations

import pytest

from prefect_mipro.client import operations
from prefect_mipro.client.clients import Client
from prefect_mipro.errors import BackendUnreachable, SessionNotFound
from tests.client.backend import Answer, Backend

EXPORT = operations.export_session("bot", traces=False)


def test_lines_come_as_they_were_sent(backend: Backend, client: Client) -> None:
    sent = ["1", '{"text": "one\u2028two\x85"}', "", "three"]
    backend.answers(Answer("\n".join(sent).encode()))
    with client.stream(EXPORT) as lines:
        assert [line.decode() for line in lines] == sent
    assert backend.asked == [("GET", "/api/v1/online/sessions/bot/export")]
    assert backend.last.query == {"traces": "false"}


def test_a_refusal_is_the_error_it_would_be_otherwise(backend: Backend, client: Client) -> None:
    backend.answers(Answer({"error": "SessionNotFound", "message": "no session 'bot'"}, 404))
    with pytest.raises(SessionNotFound, match="no session 'bot'"), client.stream(EXPORT):
        pass


def test_a_backend_that_is_busy_is_asked_again(
    backend: Backend, client: Client, waits: list[float]
) -> None:
    backend.answers(Answer(status=503), Answer(dropped=True), Answer(b"here"))
    with client.stream(EXPORT) as lines:
        assert list(lines) == [b"here"]
    assert len(waits) == 2


def test_an_answer_that_is_cut_off_says_so(backend: Backend, client: Client) -> None:
    half = {"Transfer-Encoding": "chunked", "Connection": "close"}
    backend.answers(Answer(b"9\r\nhalf", headers=half))
    with (
        pytest.raises(BackendUnreachable, match="cut off"),
        client.stream(EXPORT) as lines,
    ):
        list(lines)
