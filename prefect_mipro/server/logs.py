"""How logs are written: one line per event on standard error, its fields as key=value or JSON.

What is logged are events and their ids, never a prompt, an answer, a key or the path of a proxied
call, which holds a secret of its session.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
LONGEST_REQUEST_ID = 128

_OWN_ATTRIBUTES = frozenset(
    {*vars(logging.makeLogRecord({})), "asctime", "color_message", "message", "taskName"}
)
_PLAIN = frozenset(map(chr, range(33, 127)))
_request_id: ContextVar[str] = ContextVar("request_id", default="")
# Unlike any other process's, and cheap.
_process = secrets.token_hex(4)
_numbers = itertools.count(1)


def log_to_stderr(level: str, log_format: LogFormat = "text") -> None:
    """Our events from that level on, and what libraries find worth a warning."""
    stream = logging.StreamHandler()
    stream.setFormatter(JsonFormatter() if log_format == "json" else EventFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[stream], force=True)
    logging.getLogger("prefect_mipro").setLevel(level.upper())


def begin_request(told: str) -> str:
    """The request's id, which all lines that are logged on its behalf carry from now on.

    It is what the caller has told where that is short and plain, else a new one.
    """
    request_id = told
    if not (0 < len(request_id) <= LONGEST_REQUEST_ID and _PLAIN.issuperset(request_id)):
        request_id = f"{_process}-{next(_numbers)}"
    _request_id.set(request_id)
    return request_id


class EventFormatter(logging.Formatter):
    """`2026-11-22T18:03:07.123+00:00 info prefect_mipro.server server started port=8000`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record))
        level = record.levelname.lower()
        line = f"{_moment(record)} {level} {record.name} {record.getMessage()}{fields}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """`{"time": "2026-…", "level": "info", "logger": "…", "event": "server started", …}`.

    A field that has the name of one of these is left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**dict(_fields(record)), **line}, default=str, ensure_ascii=False)


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    for name, value in vars(record).items():
        # Libraries leave marks of their own on records.
        if name not in _OWN_ATTRIBUTES and not name.startswith("_"):
            yield name, value
    if request_id := _request_id.get():
        yield "request_id", request_id


def _shown(value: object) -> str:
    """The value, quoted when it would read as more than one word."""
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
