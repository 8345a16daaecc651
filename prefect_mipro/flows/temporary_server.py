"""Settings for runs without a Prefect server, for which Prefect starts one as long as they last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE,
    temporary_settings,
)

START_SECONDS = 120
RECORDED_AT_ONCE = 100


@contextmanager
def temporary_server_settings() -> Iterator[None]:
    """Runs within are recorded whole. What is set elsewhere, by variable or profile, goes first.

    Prefect's temporary server takes long to start on a busy machine, and it writes task runs one
    by one, so that it would end before most of many short ones are written.
    """
    with temporary_settings(
        set_defaults={
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: START_SECONDS,
            PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE: RECORDED_AT_ONCE,
            PREFECT_SERVER_ANALYTICS_ENABLED: False,
        },
    ):
        yield
