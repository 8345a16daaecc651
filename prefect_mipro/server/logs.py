"""How logs are written: one line per event on standard error, its fields as key=value."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

_OWN_ATTRIBUTES = frozenset(
    {*vars(logging.makeLogRecord({})), "asctime", "color_message", "message", "taskName"}
)


def log_to_stderr(level: str) -> None:
    """Our events from that level on, and what libraries find worth a warning."""
    stream = logging.StreamHandler()
    stream.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[stream], force=True)
    logging.getLogger("prefect_mipro").setLevel(level.upper())


class EventFormatter(logging.Formatter):
    """`2026-11-22T18:03:07.123+00:00 info prefect_mipro.server server started port=8000`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = (
            f" {name}={_shown(value)}"
            for name, value in vars(record).items()
            if name not in _OWN_ATTRIBUTES
        )
        level = record.levelname.lower()
        line = f"{moment} {level} {record.name} {record.getMessage()}{''.join(fields)}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def _shown(value: object) -> str:
    """The value, quoted when it would read as more than one word."""
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
