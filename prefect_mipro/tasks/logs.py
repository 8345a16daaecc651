"""Where tasks write their log lines."""

from __future__ import annotations

import logging
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger


def run_logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The logger of the present run, whose lines Prefect shows; outside of one, a plain one."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("prefect_mipro")
