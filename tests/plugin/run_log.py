"""What a run's log warns of, where no run is around the tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Warnings(logging.Handler):
    """The warnings of this package in a run's log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    handler = Warnings()
    logger = logging.getLogger("prefect.prefect_mipro")
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)
