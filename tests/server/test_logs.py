"""Log lines: one event each, its fields in words that can be told apart."""

from __future__ import annotations

import logging

import pytest

from prefect_mipro.server.logs import EventFormatter


def line(**fields: object) -> str:
    record = logging.makeLogRecord(
        {"name": "n", "levelno": 20, "levelname": "INFO", "msg": "it happened", "created": 0.0}
        | fields
    )
    return EventFormatter().format(record)


def test_an_event_is_one_line_with_its_fields() -> None:
    assert line(port=8000) == "1970-01-01T00:00:00.000+00:00 info n it happened port=8000"


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
