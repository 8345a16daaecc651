"""The log of a run: its logger, and a filter for Prefect's own lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

ROLLOUT_TASKS = frozenset({"run-rollout", "run-rollouts"})


def run_logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The logger of the present run, whose lines Prefect shows; outside a run, a plain logger."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("prefect_mipro")


@contextmanager
def quiet_rollouts(flow_run_id: UUID | str | None) -> Iterator[None]:
    """Drop the lines that say a rollout's task has completed, which would bury all others.

    Failures and the program's own lines stay. At the level DEBUG nothing is dropped.
    """
    logger = get_logger("task_runs")

    def tells(record: logging.LogRecord) -> bool:
        return (
            record.levelno != logging.INFO
            or getattr(record, "task_name", None) not in ROLLOUT_TASKS
            or getattr(record, "flow_run_id", None) != str(flow_run_id)
            or not record.getMessage().startswith("Finished in state ")
        )

    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)
