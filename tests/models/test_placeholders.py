"""Placeholders: found in patterns, filled with a row's fields."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.chat import InitialPrompt, PromptMessage
from prefect_mipro.models.placeholders import fill, filled, names, placeholders


def prompt(*patterns: str, **wildcards: Any) -> InitialPrompt:
    messages = tuple(
        PromptMessage(role="user", pattern=pattern, order=order)
        for order, pattern in enumerate(patterns)
    )
    return InitialPrompt(messages=messages, wildcards=wildcards)


def test_placeholders_are_named_once_in_their_order() -> None:
    assert placeholders("{b} and {a} and {b}, not {1} nor {}") == ("b", "a")
    assert names(prompt("{b}", "{a} {b}")) == ("b", "a")


def test_braces_that_are_no_placeholder_stay() -> None:
    assert fill('{"intent": "{intent}"} {other}', {"intent": "taxi"}) == (
        '{"intent": "taxi"} {other}'
    )


def test_a_text_that_looks_like_a_placeholder_is_not_filled_in_turn() -> None:
    (message,) = filled(prompt("{a} {b}"), {"a": "{b}", "b": "x"})
    assert message["content"] == "{b} x"


def test_a_row_may_have_more_fields_than_the_prompt_asks_for() -> None:
    row = {"id": 7, "text": "play jazz", "stars": 4.5}
    assert filled(prompt("{text} ({stars})"), row) == [
        {"role": "user", "content": "play jazz (4.5)"}
    ]


@pytest.mark.parametrize("row", [{}, {"text": None}])
def test_what_is_optional_may_be_left_out(row: dict[str, Any]) -> None:
    assert filled(prompt("Hm. {text}", text="OPTIONAL"), row)[0]["content"] == "Hm. "


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"query": "x"}, r"no value for the prompt's placeholder {text} \(there are: query\)"),
        ({}, r"there are: none"),
        ({"text": None}, r"'text' is None, .* wildcards = { text = \"OPTIONAL\" }"),
        ({"text": True}, r"'text' is True; give a text or a number"),
        ({"text": ["a"]}, r"'text' is \['a'\]; give a text or a number"),
        ({"text": "  "}, r"'text' is blank, and the prompt requires a text there"),
    ],
)
def test_a_value_that_cannot_be_filled_in_is_named(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputInvalid, match=sentence):
        filled(prompt("{text}", text="REQUIRED"), row)
