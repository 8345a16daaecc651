"""The backend of a run: a named one, or an embedded one for as long as the run lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.tasks.connections import configured_backend_url
from prefect_mipro.tasks.logs import run_logger


@contextmanager
def some_backend(
    *, backend_url: str | None = None, credentials: str | None = None
) -> Iterator[str | None]:
    """The URL for `create_session`; `None` where a credentials block says it.

    Else the one given, else `MIPRO_BACKEND_URL`, else that of an embedded backend, which ends with
    the context.
    """
    url = backend_url or configured_backend_url()
    if credentials or url:
        yield None if credentials else url
        return
    with EmbeddedBackend() as backend:
        run_logger().info(
            "Started the embedded backend; its log is %s. Name a credentials block or set "
            "MIPRO_BACKEND_URL to use another",
            backend.log_path,
        )
        yield backend.url
