"""One operation's conversation, carried out by hand: no network and no waiting."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_mipro import errors
from prefect_mipro.client import operations
from prefect_mipro.client.exchange import Exchange, Reply, Send, Wait, exchange
from prefect_mipro.client.operations import Operation
from prefect_mipro.errors import (
    AnswerInvalid,
    BackendUnreachable,
    InputInvalid,
    MiproError,
    Overloaded,
)
from prefect_mipro.models.rollouts import RewardRequest

REQUEST = httpx.Request("GET", "http://h/api/x")
KEY = "sk-0123456789"

health = operations.health
never_repeated = operations.add_candidate("s", "Classify.")


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=content, headers=sent, request=REQUEST)


def dropped() -> httpx.RequestError:
    return httpx.RemoteProtocolError("Server disconnected", request=REQUEST)


def start(operation: Operation[Any] | None = None, jitter: float = 1.0) -> Exchange[Any]:
    return exchange(operation or health(), jitter=lambda: jitter, key=KEY)


def outcome(
    replies: list[Reply], operation: Operation[Any] | None = None
) -> tuple[Any, list[float]]:
    """The exchange's value after these replies, and the waits in between."""
    steps, waits, left = start(operation), [], iter(replies)
    step: Send | Wait = next(steps)
    try:
        while True:
            if isinstance(step, Wait):
                waits.append(step.seconds)
                step = next(steps)
            else:
                step = steps.send(next(left))
    except StopIteration as done:
        assert list(left) == []
        return done.value, waits


def failure(*replies: Reply, operation: Operation[Any] | None = None) -> MiproError:
    with pytest.raises(MiproError) as caught:
        outcome(list(replies), operation)
    return caught.value


def sent(body: dict[str, Any]) -> Any:
    step = next(start(replace(never_repeated, body=body)))
    assert isinstance(step, Send)
    assert step.content is not None
    return json.loads(step.content)


def test_an_answer_ends_the_exchange() -> None:
    assert outcome([answer(body={"ok": True})]) == ({"ok": True}, [])


@pytest.mark.parametrize("status", [200, 201, 202])
def test_every_2xx_is_success(status: int) -> None:
    assert outcome([answer(status, {"a": 1})])[0] == {"a": 1}


@pytest.mark.parametrize(
    "passing", [dropped(), *(answer(status) for status in (429, 502, 503, 504))]
)
def test_what_may_pass_is_repeated(passing: Reply) -> None:
    assert outcome([passing, answer(body={"ok": 1})]) == ({"ok": 1}, [0.5])


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422, 500, 501])
def test_what_will_not_pass_is_not_repeated(status: int) -> None:
    assert failure(answer(status)).status == status


def test_four_attempts_are_the_end() -> None:
    with pytest.raises(BackendUnreachable):
        outcome([dropped()] * 4)


def test_waits_double() -> None:
    assert outcome([dropped()] * 3 + [answer()])[1] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 0.25), (0.5, 0.375)])
def test_chance_shortens_a_wait_by_up_to_half(jitter: float, seconds: float) -> None:
    steps = start(jitter=jitter)
    next(steps)
    assert steps.send(dropped()) == Wait(seconds)


def test_an_operation_that_is_not_repeatable_is_sent_once() -> None:
    assert isinstance(failure(dropped(), operation=never_repeated), BackendUnreachable)
    assert isinstance(failure(answer(429), operation=never_repeated), Overloaded)


def test_a_repeat_carries_the_same_request_and_key() -> None:
    steps = start(operations.reward("s", RewardRequest(reward_info={"score": 1})))
    first = next(steps)
    steps.send(dropped())
    second = next(steps)
    assert isinstance(second, Send)
    assert second == first
    assert second.headers["Idempotency-Key"]


@pytest.mark.parametrize(("after", "seconds"), [("7", 7.0), ("0", 0.5), ("1.5", 1.5), ("120", 120)])
def test_retry_after_is_honoured(after: str, seconds: float) -> None:
    assert outcome([answer(503, retry_after=after), answer()])[1] == [seconds]


def test_retry_after_may_be_a_date() -> None:
    busy = answer(
        429, retry_after="Sun, 01 Mar 2026 12:00:10 GMT", date="Sun, 01 Mar 2026 12:00:00 GMT"
    )
    assert outcome([busy, answer()])[1] == [10.0]


@pytest.mark.parametrize("after", ["soon", "nan", "-3", "Sun, 01 Mar 2026 12:00:10 GMT", ""])
def test_an_unusable_retry_after_counts_as_none(after: str) -> None:
    assert outcome([answer(429, retry_after=after), answer()])[1] == [0.5]


def test_a_retry_after_beyond_two_minutes_is_a_refusal() -> None:
    error = failure(answer(429, retry_after="121"))
    assert isinstance(error, Overloaded)
    assert error.retry_after_seconds == 121.0


def every_error() -> list[type[MiproError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return sorted(
        {cls for cls in found if issubclass(cls, MiproError)}, key=lambda cls: cls.__name__
    )


@pytest.mark.parametrize("cls", every_error())
def test_an_error_keeps_its_class_over_the_wire(cls: type[MiproError]) -> None:
    status = cls.default_status or 500
    body = {"error": cls.__name__, "message": "what happened", "detail": {"a": 1}}
    error = failure(answer(status, body), operation=never_repeated)
    assert type(error) is cls
    assert error.message == "what happened"
    assert error.status == status
    assert error.url == "http://h/api/x"
    assert error.detail == body
    assert json.loads(error.body_snippet) == body


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, errors.InputInvalid),
        (401, errors.KeyRejected),
        (402, errors.PaymentRequired),
        (403, errors.KeyRejected),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.BodyTooLarge),
        (418, errors.InputInvalid),
        (422, errors.InputInvalid),
        (500, errors.BackendFailed),
        (507, errors.BackendFailed),
    ],
)
def test_an_unknown_name_falls_back_to_the_status(status: int, cls: type[MiproError]) -> None:
    error = failure(answer(status, {"error": "SomethingNewer", "message": "news"}))
    assert type(error) is cls
    assert error.message == "news"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no such model", "code": None}}, "no such model"),
        ({"error": "not today"}, "not today"),
        ({"message": "not today"}, "not today"),
        ({"detail": "Not Found"}, "Not Found"),
        (
            {"detail": [{"loc": ["body", "state"], "msg": "Field required"}]},
            "body.state: Field required",
        ),
        (
            {"detail": {"x402": {}}},
            'GET was answered with 400 Bad Request: {"detail": {"x402": {}}}',
        ),
        (b"<h1>Bad\n Gateway</h1>", "GET was answered with 400 Bad Request: <h1>Bad Gateway</h1>"),
        (b"", "GET was answered with 400 Bad Request"),
    ],
)
def test_the_message_is_found_in_every_known_shape(body: Any, message: str) -> None:
    assert failure(answer(400, body)).message == message


def test_the_proxys_shape_names_the_class_too() -> None:
    body = {"error": {"message": "gone", "type": "x", "code": "SessionNotFound", "param": None}}
    assert type(failure(answer(404, body))) is errors.SessionNotFound


def test_a_long_error_body_is_cut() -> None:
    error = failure(answer(400, b"x" * 10_000))
    assert error.body_snippet == "x" * 4096
    assert error.detail is None


@pytest.mark.parametrize(
    "body", [{"error": "KeyRejected", "message": f"unknown key {KEY}"}, f"<p>{KEY}</p>".encode()]
)
def test_an_error_that_quotes_the_key_is_shown_without_it(body: Any) -> None:
    error = failure(answer(401, body))
    shown = f"{error} {error!r} {error.message} {error.body_snippet} {error.detail}"
    assert KEY not in shown
    assert "[key]" in shown


def test_a_redirect_is_not_followed_but_shown() -> None:
    error = failure(answer(307, location="http://elsewhere/api/x"))
    assert error.status == 307
    assert "http://elsewhere/api/x" in error.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty answer"),
        (b"  ", "an empty answer"),
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a JSON list"),
        (b'"text"', "a JSON str"),
        (b"null", "a JSON NoneType"),
    ],
)
def test_an_answer_that_is_no_object_is_an_error(body: bytes, words: str) -> None:
    error = failure(answer(200, body))
    assert isinstance(error, AnswerInvalid)
    assert isinstance(error, ValueError)
    assert words in error.message
    assert error.status == 200


def test_no_content_is_an_error() -> None:
    assert isinstance(failure(answer(204, b"")), AnswerInvalid)


def test_an_answer_without_the_promised_fields_names_them() -> None:
    error = failure(
        answer(200, {"status": "accepted"}),
        operation=operations.reward("s", RewardRequest(reward_info={})),
    )
    assert isinstance(error, AnswerInvalid)
    assert "no RewardReceipt (session_id, rollout_id" in error.message


@pytest.mark.parametrize(
    "lost",
    [
        httpx.ConnectError("[Errno 111] Connection refused", request=REQUEST),
        httpx.ReadTimeout("", request=REQUEST),
        httpx.DecodingError("bad gzip", request=REQUEST),
    ],
)
def test_no_answer_says_where_and_why(lost: httpx.RequestError) -> None:
    error = failure(lost, lost, lost, lost)
    assert isinstance(error, BackendUnreachable)
    assert error.status == 0
    assert error.url == "http://h/api/x"
    assert (str(lost) or type(lost).__name__) in error.message


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("nan"), None),
        (float("inf"), None),
        ((1, "a"), [1, "a"]),
        (Fraction(1, 2), 0.5),
        ({"a": [True, None]}, {"a": [True, None]}),
        ("ü", "ü"),
    ],
)
def test_values_are_sent_in_jsons_own_types(value: Any, plain: Any) -> None:
    assert sent({"x": value}) == {"x": plain}


def contains_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {1, 2}, r"body.x\[0\] is of type set"),
        (object, r"body.x\[0\] is of type object"),
        (lambda: {1: 2}, r"body.x\[0\] has the key 1"),
        (lambda: "\ud800", "not Unicode"),
        (contains_itself, "nested too deeply"),
    ],
)
def test_values_that_json_lacks_are_refused_before_any_request(
    make: Callable[[], Any], words: str
) -> None:
    with pytest.raises(InputInvalid, match=words):
        sent({"x": [make()]})


texts = st.text(max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(texts, json_values, max_size=3))
def test_every_json_body_arrives_as_it_is(body: dict[str, Any]) -> None:
    assert sent(body) == body


@given(st.integers(200, 599), st.binary(max_size=200), st.binary(max_size=20))
def test_no_answer_makes_anything_but_a_value_or_our_error(
    status: int, body: bytes, retry_after: bytes
) -> None:
    reply = httpx.Response(
        status, content=body, headers=[(b"Retry-After", retry_after)], request=REQUEST
    )
    with suppress(MiproError):
        value, _ = outcome([reply], never_repeated)
        assert isinstance(value, dict)
