"""Log lines: one event each, its fields in words that can be told apart."""

from __future__ import annotations

import json
import logging
from contextvars import copy_context

import pytest

from prefect_mipro.server.logs import EventFormatter, JsonFormatter, begin_request


def line(**fields: object) -> str:
    record = logging.makeLogRecord(
        {"name": "n", "levelno": 20, "levelname": "INFO", "msg": "it happened", "created": 0.0}
        | fields
    )
    return EventFormatter().format(record)


def test_an_event_is_one_line_with_its_fields() -> None:
    assert line(port=8000) == "1970-01-01T00:00:00.000+00:00 info n it happened port=8000"


def test_what_libraries_mark_records_with_is_not_shown() -> None:
    assert "_mark" not in line(_mark=1)
    assert "_mark" not in json_line(_mark=1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("forged\n1970 info n it happened", r'"forged\n1970 info n it happened"'),
        ("größer", "größer"),
        (None, "None"),
    ],
)
def test_a_value_stays_one_word(value: object, shown: str) -> None:
    assert line(field=value).endswith(f" field={shown}")


def json_line(**fields: object) -> dict[str, object]:
    record = logging.makeLogRecord(
        {"name": "n", "levelname": "INFO", "msg": "it happened", "created": 0.0} | fields
    )
    line: dict[str, object] = json.loads(JsonFormatter().format(record))
    return line


def test_an_event_as_json_is_one_object_with_its_fields() -> None:
    assert json_line(port=8000, text="two\nlines") == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "logger": "n",
        "event": "it happened",
        "port": 8000,
        "text": "two\nlines",
    }


def test_no_field_takes_the_place_of_the_event() -> None:
    assert json_line(event="another")["event"] == "it happened"


def test_a_fault_as_json_has_its_traceback_in_the_same_line() -> None:
    fault = ValueError("wrong")
    assert "ValueError: wrong" in str(json_line(exc_info=(ValueError, fault, None))["traceback"])


def test_what_a_request_logs_carries_the_callers_request_id() -> None:
    def within_a_request() -> str:
        begin_request("req-7")
        return line()

    assert copy_context().run(within_a_request).endswith(" request_id=req-7")
    assert "request_id" not in line()


@pytest.mark.parametrize("told", ["", "x" * 200, "two\nlines", "two words", "größer"])
def test_a_request_id_that_is_not_short_and_plain_is_replaced(told: str) -> None:
    def two_requests() -> set[str]:
        return {begin_request(told) for _ in range(2)}

    made = copy_context().run(two_requests)
    assert len(made) == 2
    assert told not in made
