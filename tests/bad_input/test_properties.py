"""Whatever comes in, a parser takes it or refuses it in the way it promises."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prefect_mipro.errors import InputInvalid, RewardInvalid
from prefect_mipro.models.base import Record, SessionId
from prefect_mipro.models.chat import InitialPrompt, PromptMessage
from prefect_mipro.models.exports import FirstLine, ImportRequest, LastLine
from prefect_mipro.models.leases import LeaseRequest, TraceRequest
from prefect_mipro.models.names import identifier, is_identifier, short_text
from prefect_mipro.models.placeholders import filled
from prefect_mipro.models.rollouts import RewardInfo, RewardRequest
from prefect_mipro.models.rows import is_missing
from prefect_mipro.models.sessions import CreateSession, NewEpoch, Promote, StateChange
from prefect_mipro.server.routes.bodies import parse_json
from prefect_mipro.server.upstream.completions import read
from prefect_mipro.server.upstream.events import Events
from prefect_mipro.server.upstream.refusals import openai_refusal
from prefect_mipro.transport import retry_after_seconds
from tests.server.scripted_upstream import DONE, event

some = settings(max_examples=30)

TEXT = st.text(max_size=12) | st.sampled_from(["", "\0", "\ud800", "r1", "a.b", "running", "mipro"])
NUMBER = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63), 1e308, math.nan])
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
REQUESTS: list[type[Record]] = [
    CreateSession,
    FirstLine,
    ImportRequest,
    LastLine,
    LeaseRequest,
    NewEpoch,
    Promote,
    RewardRequest,
    StateChange,
    TraceRequest,
]
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("model", REQUESTS)
def test_anything_is_a_request_that_survives_the_wire_or_is_refused(model: type[Record]) -> None:
    likely: dict[str, Any] = {"messages": MESSAGES, "rollout_id": "r1", "latency_seconds": 1.0}

    @some
    @given(st.dictionaries(st.sampled_from(list(model.model_fields)), VALUE, max_size=6))
    def check(fields: dict[str, Any]) -> None:
        with suppress(ValidationError):
            request = model.model_validate(likely | fields)
            sent = request.model_dump()
            assert model.model_validate(sent).model_dump().keys() == sent.keys()

    check()


@some
@given(st.dictionaries(st.sampled_from(["score", "reward", "outcome_reward", "feedback"]), VALUE))
def test_anything_is_a_finite_score_or_an_invalid_reward(reward_info: dict[str, Any]) -> None:
    with suppress(RewardInvalid):
        assert math.isfinite(RewardInfo.parse(reward_info).score)


@some
@given(st.text(max_size=8) | st.from_regex(r"\A[A-Za-z0-9_.:~-]{1,210}\Z"))
def test_an_id_is_one_for_paths_and_for_bodies_alike(text: str) -> None:
    if is_identifier(text):
        assert quote(text, safe=":") == text
        assert TypeAdapter(SessionId).validate_python(identifier("id", text)) == text
    else:
        with pytest.raises(ValidationError):
            TypeAdapter(SessionId).validate_python(text)
        with pytest.raises(InputInvalid, match="id is "):
            identifier("id", text)


@some
@given(st.text())
def test_a_short_text_is_printable_or_refused(text: str) -> None:
    with suppress(InputInvalid):
        assert short_text("word", text).isprintable()


@some
@given(st.text() | st.from_regex(r"\A\s*[-+]?[0-9.eE]+\s*\Z") | st.sampled_from(["inf", "nan"]))
def test_a_retry_after_is_a_wait_or_nothing(header: str) -> None:
    seconds = retry_after_seconds(header)
    assert seconds is None or 0.0 <= seconds < math.inf


PROMPT = InitialPrompt(
    messages=(PromptMessage(role="user", pattern='{a}: {"b": "{b}"}'),), wildcards={"b": "OPTIONAL"}
)


@some
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUE) | VALUE)
def test_any_row_fills_the_placeholders_word_for_word_or_is_refused(row: Any) -> None:
    with suppress(InputInvalid):
        (message,) = filled(PROMPT, row)
        shown = "" if is_missing(row.get("b")) else str(row["b"])
        assert message["content"] == f'{row["a"]}: {{"b": "{shown}"}}'


@pytest.mark.parametrize("digits", [400, 5_000])
def test_numbers_of_thousands_of_digits_are_refused(digits: int) -> None:
    with pytest.raises(RewardInvalid, match="score is too large"):
        RewardInfo.parse({"score": 10**digits})
    with pytest.raises(InputInvalid, match="'a' is a number too long"):
        filled(PROMPT, {"a": 10**5_000})


@some
@given(st.binary() | VALUE.map(lambda value: json.dumps(value).encode()))
def test_a_body_is_json_or_invalid_input(body: bytes) -> None:
    with suppress(InputInvalid):
        json.dumps(parse_json(body), allow_nan=False).encode()


ANSWER = st.fixed_dictionaries({}, optional=dict.fromkeys(("choices", "error", "usage"), VALUE))
ANSWERED = st.binary() | (ANSWER | st.lists(ANSWER)).map(lambda said: json.dumps(said).encode())


@some
@given(ANSWERED)
def test_an_answer_of_any_kind_is_a_completion_or_says_why_not(body: bytes) -> None:
    completion = read(body)
    assert completion.error or completion.response
    assert 0 <= completion.usage.prompt_tokens <= 10**9


@some
@given(ANSWERED | st.integers(0, 2_000).map(lambda depth: b"[" * depth + b"]" * depth))
def test_a_refusal_of_any_kind_has_a_message_for_openais_clients(body: bytes) -> None:
    told = json.loads(openai_refusal(body, status=400))
    assert isinstance(told["error"]["message"], str)


EVENT = st.sampled_from(
    [event("a"), event("é\u2028"), DONE, b": ping\n\n", b"data: {\r\n\r\n", b"data: 5\r\r", b"\n"]
) | st.binary(max_size=20)


@some
@given(st.lists(EVENT, max_size=6).map(b"".join), st.data())
def test_a_stream_is_the_same_however_it_is_cut(stream: bytes, data: st.DataObject) -> None:
    whole = Events()
    assert whole.feed(stream) + whole.end() == stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = Events()
    passed_on = [
        pieces.feed(stream[begin:end]) for begin, end in zip([0, *cuts], [*cuts, None], strict=True)
    ]
    assert b"".join(passed_on) + pieces.end() == stream
    assert pieces.completion == whole.completion
