"""Placeholders: found in patterns, filled with a row's fields."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.chat import InitialPrompt, PromptMessage
from prefect_mipro.models.placeholders import (
    escaped,
    fill,
    filled,
    placeholders,
    placeholders_of,
)


def prompt(*patterns: str, **wildcards: Any) -> InitialPrompt:
    messages = tuple(
        PromptMessage(role="user", pattern=pattern, order=order)
        for order, pattern in enumerate(patterns)
    )
    return InitialPrompt(messages=messages, wildcards=wildcards)


def test_placeholders_are_named_once_in_their_order() -> None:
    assert placeholders("{b} and {a} and {b}, not {1} nor {}") == ("b", "a")
    assert [each.name for each in placeholders_of(prompt("{b}", "{a} {b}"))] == ["b", "a"]


def test_braces_that_are_no_placeholder_stay() -> None:
    assert fill('{"intent": "{intent}"} {other}', {"intent": "taxi"}) == (
        '{"intent": "taxi"} {other}'
    )


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("{{name}} {x}", "{name} 7"),
        ('{{"a": {{"b": "{x}"}}}}', '{"a": {"b": "7"}}'),
        ("{{{x}}}", "{7}"),
        ('{"a": {"b": "{x}"}}', '{"a": {"b": "7"}}'),
        ('{{"a": 1}} or {"a": {x}}', '{{"a": 1}} or {"a": 7}'),
        ("{{1, 2}, {3, {x}}}", "{{1, 2}, {3, 7}}"),
    ],
)
def test_braces_are_read_as_str_format_does_where_it_would_take_the_pattern(
    pattern: str, text: str
) -> None:
    assert fill(pattern, {"x": "7"}) == text


@pytest.mark.parametrize("text", ["plain", "{x}", "{{x}}", '{"a": {x}}', "}} {"])
def test_an_escaped_text_is_filled_with_itself(text: str) -> None:
    assert fill(escaped(text), {"x": "7"}) == text


def test_a_text_that_looks_like_a_placeholder_is_not_filled_in_turn() -> None:
    (message,) = filled(prompt("{a} {b}"), {"a": "{b}", "b": "x"})
    assert message["content"] == "{b} x"


def test_a_row_may_have_more_fields_than_the_prompt_asks_for() -> None:
    row = {"id": 7, "text": "play jazz", "stars": 4.5}
    assert filled(prompt("{text} ({stars})"), row) == [
        {"role": "user", "content": "play jazz (4.5)"}
    ]


@pytest.mark.parametrize(
    "value",
    [7, np.int64(7), np.float32(0.1), Decimal("1.10"), Fraction(1, 2), np.str_("x")],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_all_libraries_are_written_as_they_print(value: Any) -> None:
    assert filled(prompt("{text}"), {"text": value})[0]["content"] == str(value)


MISSING = [None, float("nan"), np.float32("nan"), Decimal("NaN"), pd.NA, pd.NaT, np.ma.masked]


@pytest.mark.parametrize("value", MISSING, ids=lambda value: type(value).__name__)
def test_a_missing_value_is_never_sent_as_text(value: Any) -> None:
    row = {"id": 7, "text": value}
    for given in (row, pd.Series(row, dtype=object)):
        with pytest.raises(InputInvalid, match=f"'text' is {value} in row 7, and the prompt"):
            filled(prompt("{text}"), given)
    assert filled(prompt("Hm. {text}", text="OPTIONAL"), row)[0]["content"] == "Hm. "


@pytest.mark.parametrize(
    ("row", "name"),
    [({"id": float("nan"), "text": ""}, "the row {'id': nan"), ({"seed": 0}, "row 0")],
)
def test_an_error_names_the_row(row: dict[str, Any], name: str) -> None:
    with pytest.raises(InputInvalid, match=name):
        filled(prompt("{text}", text="REQUIRED"), row)


@pytest.mark.parametrize("row", [{}, {"text": None}])
def test_what_is_optional_may_be_left_out(row: dict[str, Any]) -> None:
    assert filled(prompt("Hm. {text}", text="OPTIONAL"), row)[0]["content"] == "Hm. "


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"query": "x"}, r"no value for .* {text} in the row {'query': 'x'} \(there are: query\)"),
        ({}, r"there are: none"),
        ({"text": None}, r"'text' is None in .* wildcards = { text = \"OPTIONAL\" }"),
        ({"text": True}, r"'text' is True in .*; give a text or a number"),
        ({"text": np.True_}, r"'text' is np.True_ in .*; give a text or a number"),
        ({"text": [float("nan")]}, r"'text' is \[nan\] in .*; give a text or a number"),
        ({"text": "  "}, r"'text' is blank in .*, and the prompt requires a text there"),
    ],
)
def test_a_value_that_cannot_be_filled_in_is_named(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputInvalid, match=sentence):
        filled(prompt("{text}", text="REQUIRED"), row)
