"""Settings for runs without a Prefect server, for which Prefect starts a temporary one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE,
    temporary_settings,
)

DEFAULTS = {
    # It starts slowly on a busy machine.
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
    # It writes task runs one by one, and would end before most of many short ones are written.
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE: 100,
    # Its telemetry fails noisily while the database is new.
    PREFECT_SERVER_ANALYTICS_ENABLED: False,
    # Ctrl-C ends it before the run, which then tries to reach it: five minutes at Prefect's five.
    PREFECT_CLIENT_MAX_RETRIES: 2,
}


@contextmanager
def temporary_server_settings() -> Iterator[None]:
    """Apply settings that suit a temporary server, unless a server is configured.

    Values set by environment variable or profile take precedence.
    """
    defaults = {} if PREFECT_API_URL.value() else DEFAULTS
    with temporary_settings(set_defaults=defaults):
        yield
