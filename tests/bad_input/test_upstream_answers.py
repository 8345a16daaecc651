"""What a model's server may answer: the caller gets it or a 502, and the session goes on."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from prefect_mipro.server.upstream.openai import LARGEST_ANSWER_BYTES
from tests.server.routes.conftest import SESSIONS, Caller
from tests.server.scripted_upstream import COMPLETION, Connection, Script

CHOICES = b'{"choices": [{"message": {"content": "x"}}]'
PASSED_ON = {
    "half of a character": b'{"choices": [{"message": {"content": "\\ud800"}}]}',
    "a character that databases refuse": b'{"choices": [{"message": {"content": "a\\u0000"}}]}',
    "NaN": CHOICES + b', "x": NaN}',
    "a number beyond all floats": CHOICES + b', "x": 1e400}',
    "300 levels": CHOICES + b', "x": ' + b"[" * 300 + b"]" * 300 + b"}",
    "900 levels": CHOICES + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "more tokens than databases count": CHOICES
    + b', "usage": {"prompt_tokens": '
    + b"9" * 400
    + b"}}",
    "tokens that are no numbers": CHOICES + b', "usage": {"prompt_tokens": ["7"]}}',
    "a model of 100 kB": CHOICES + b', "model": "' + b"m" * 100_000 + b'"}',
    "choices that are none": b'{"choices": [5]}',
    "a message that is none": b'{"choices": [{"message": null}]}',
}
NONSENSE = {
    "nothing": b"",
    "100,000 levels": b"[" * 100_000,
    "a number of 5,000 digits": CHOICES + b', "x": ' + b"9" * 5_000 + b"}",
    "another encoding": b'{"choices": [{"message": {"content": "\xe9"}}]}',
    "an error with half of a character": b'{"error": "\\ud800"}',
    "an error of 900 levels": b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}",
}


def saying(body: bytes, *, status: int = 200, **more: Any) -> Script:
    def script(connection: Connection) -> None:
        connection.answer(body, status=status, **more)

    return script


def counts(caller: Caller, session: dict[str, Any]) -> tuple[int, int]:
    """Calls of the baseline, and those that failed, after one more that does not."""
    caller.upstream.script.clear()
    assert caller.chat(session, "the-last-one").status_code == 200
    status = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
    (candidate,) = status["candidates"].values()
    return status["context_apply"]["calls"], candidate["failed_calls"]


@pytest.mark.parametrize("answer", PASSED_ON.values(), ids=PASSED_ON.keys())
def test_odd_completions_pass_as_they_are_and_are_recorded(caller: Caller, answer: bytes) -> None:
    session = caller.session()
    caller.upstream.script.append(saying(answer))
    answered = caller.chat(session, "r1")
    assert (answered.status_code, answered.content) == (200, answer)
    assert counts(caller, session) == (2, 0)


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_a_bad_gateway_and_a_failed_call(caller: Caller, answer: bytes) -> None:
    session = caller.session()
    caller.upstream.script.append(saying(answer))
    answered = caller.chat(session, "r1")
    assert answered.status_code == 502
    assert answered.json()["error"]["code"] == "CompletionInvalid"
    assert counts(caller, session) == (2, 1)


@pytest.mark.parametrize(
    "answer", [*PASSED_ON.values(), *NONSENSE.values()], ids=[*PASSED_ON.keys(), *NONSENSE.keys()]
)
def test_refusals_keep_their_status_and_have_a_message(caller: Caller, answer: bytes) -> None:
    session = caller.session()
    caller.upstream.script.append(saying(answer, status=400))
    answered = caller.chat(session, "r1")
    assert answered.status_code == 400
    assert answered.json()["error"]["message"]


def test_a_content_type_that_no_header_can_carry_is_left_out(caller: Caller) -> None:
    session = caller.session()
    body = json.dumps(COMPLETION).encode()
    caller.upstream.script.append(saying(body, content_type="application/json; x=\xff"))
    answered = caller.chat(session, "r1")
    assert answered.headers["content-type"] == "application/json"
    assert answered.content == body


def test_a_small_compressed_answer_is_unpacked(caller: Caller) -> None:
    session = caller.session()
    packed = gzip.compress(json.dumps(COMPLETION).encode())
    caller.upstream.script.append(saying(packed, headers={"Content-Encoding": "gzip"}))
    assert caller.chat(session, "r1").json() == COMPLETION


def test_one_that_unpacks_to_too_much_is_given_up(caller: Caller) -> None:
    session = caller.session()
    bomb = gzip.compress(b" " * (LARGEST_ANSWER_BYTES + 1))
    caller.upstream.script.append(saying(bomb, headers={"Content-Encoding": "gzip"}))
    answered = caller.chat(session, "r1")
    assert answered.status_code == 502
    assert "more than 32 MB" in answered.json()["error"]["message"]
    assert counts(caller, session) == (2, 1)
