"""The backend of a run: a named one, or an embedded one for as long as the run lasts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_mipro.client import environment
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import Conflict
from prefect_mipro.tasks.logs import run_logger

LONGEST_WAIT_SECONDS = 1_800.0
LOOK_AGAIN_SECONDS = 5.0


@contextmanager
def some_backend(
    *, backend_url: str | None = None, credentials: str | None = None
) -> Iterator[str | None]:
    """The URL for `create_session`; `None` where a credentials block says it.

    Else the one given, else `MIPRO_BACKEND_URL`, else that of an embedded backend, which ends with
    the context. Runs that come at once take turns with it.
    """
    if credentials:
        yield None
        return
    if url := backend_url or environment.named_backend_url():
        if not backend_url:
            run_logger().info("The backend is %s, as the environment says", url)
        yield url
        return
    backend = in_turn()
    try:
        run_logger().info(
            "Started the embedded backend; its log is %s. Name a credentials block or set "
            "%s to use another",
            backend.log_path,
            environment.URL_VARIABLE,
        )
        yield backend.url
    finally:
        backend.stop()


def in_turn(
    *,
    longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    look_again_seconds: float = LOOK_AGAIN_SECONDS,
) -> EmbeddedBackend:
    """An embedded backend that runs, as soon as no other run has its sessions."""
    end = time.monotonic() + longest_wait_seconds
    told = False
    while True:
        backend = EmbeddedBackend()
        try:
            backend.start()
        except Conflict as error:
            if time.monotonic() >= end:
                raise
            if not told:
                run_logger().warning("Waiting: %s", error)
            told = True
        else:
            return backend
        time.sleep(look_again_seconds)
