"""Which answers tell against the prompt, and which say nothing of it."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.models.rollouts import FailureKind
from prefect_mipro.server.upstream.completions import Completion
from prefect_mipro.server.upstream.prompt_failures import prompt_failure


def refusal(message: str = "no", **more: Any) -> Completion:
    return Completion({"error": {"message": message, **more}}, "an error")


def answer(content: Any = "yes", finish_reason: str = "stop", **message: Any) -> Completion:
    choice = {"message": {"content": content, **message}, "finish_reason": finish_reason}
    return Completion({"choices": [choice]})


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504])
def test_outages_and_the_callers_own_faults_say_nothing(status: int) -> None:
    assert prompt_failure(status, refusal()) is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_tells_against_the_prompt(status: int) -> None:
    told = prompt_failure(status, refusal(code="context_length_exceeded"))
    assert told is not None
    assert (told.kind, told.reason) == (
        FailureKind.REFUSED,
        f"status {status} (context_length_exceeded)",
    )


def test_what_a_refusal_quotes_is_not_in_the_reason() -> None:
    told = prompt_failure(400, refusal("the prompt 'my secret' is odd", code="my secret: odd"))
    assert told is not None
    assert told.reason == "status 400"


@pytest.mark.parametrize("status", [403, 451])
def test_moderation_under_another_status_is_a_refusal(status: int) -> None:
    told = prompt_failure(status, refusal("your input was flagged by moderation"))
    assert told is not None


@pytest.mark.parametrize(
    ("message", "fits"),
    [
        (
            "This model's maximum context length is 4097 tokens, however you requested 4162 tokens "
            "(4062 in your prompt; 100 for the completion).",
            4097 / 4162,
        ),
        ("prompt is too long: 210,000 tokens > 200,000 maximum", 200 / 210),
        ("input (5000 tokens) is larger than the max context size (4096 tokens)", 4096 / 5000),
        ("the context window is full", None),
    ],
)
def test_a_refusal_for_length_tells_how_much_would_fit(message: str, fits: float | None) -> None:
    told = prompt_failure(400, refusal(message))
    assert told is not None
    assert (told.too_long, told.fits) == (True, fits)


def test_other_refusals_are_not_for_length() -> None:
    told = prompt_failure(400, refusal("unknown field 'foo'", code="invalid_value"))
    assert told is not None
    assert not told.too_long


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        (answer("", "content_filter"), FailureKind.FILTERED),
        (answer("half of", "content_filter"), FailureKind.FILTERED),
        (answer(None, refusal="I cannot"), FailureKind.FILTERED),
        (answer(" \n"), FailureKind.EMPTY),
        (answer(None), FailureKind.EMPTY),
        (answer("", "length", reasoning_content="thinking"), FailureKind.EMPTY),
        (answer("half of", "length"), FailureKind.CUT),
    ],
)
def test_spoilt_answers_tell_against_the_prompt(completion: Completion, kind: FailureKind) -> None:
    told = prompt_failure(200, completion)
    assert told is not None
    assert told.kind is kind


@pytest.mark.parametrize(
    "completion",
    [
        answer(),
        answer(None, "tool_calls", tool_calls=[{"id": "1"}]),
        answer(None, "function_call", function_call={"name": "f"}),
        answer([{"type": "text", "text": "yes"}]),
        Completion(error="the caller went away"),
        Completion({"choices": []}, "an object without choices"),
    ],
)
def test_answers_and_broken_ones_do_not(completion: Completion) -> None:
    assert prompt_failure(200, completion) is None


def test_of_several_choices_all_must_be_spoilt() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("", "yes")]
    assert prompt_failure(200, Completion({"choices": choices})) is None


@pytest.mark.parametrize(
    ("error", "tells"),
    [
        ({"message": "too many tokens", "code": 400}, True),
        ({"message": "maximum context length is 8192 tokens"}, True),
        ({"message": "busy", "code": 503}, False),
        ({"message": "the server is on fire"}, False),
        ("odd", False),
    ],
)
def test_an_error_in_a_stream_is_read_as_the_refusal_that_it_is(error: Any, tells: bool) -> None:
    told = prompt_failure(200, Completion({"error": error}, "an error"))
    assert (told is not None) is tells
