"""The session of a flow: a new or an existing one, on a named or an embedded backend."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect_mipro.blocks import MiproCredentials, load
from prefect_mipro.client import environment
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import Conflict, InputInvalid
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.opening import ConfigSource, session_plan

LONGEST_WAIT_SECONDS = 1_800.0
LOOK_AGAIN_SECONDS = 5.0


@contextmanager
def some_session(
    config: ConfigSource,
    *,
    session_id: str | None = None,
    credentials: str | None = None,
    backend_url: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[SessionHandle]:
    """Open a session for a block, on an embedded backend if no other is named.

    The tasks in the block share one connection. An embedded backend ends with the block; its
    sessions continue with the next one.

    Args:
        config: The config, as in `open_session`.
        session_id: The session's id, as in `open_session`.
        credentials: The name of a saved `MiproCredentials` block, as in `open_session`.
        backend_url: The backend's URL, as in `open_session`.
        overrides: Values that replace those of the config, by dotted path.

    Returns:
        A context manager whose value is the session's handle.

    Raises:
        ConfigInvalid: The config cannot be used.
        ConfigNotFound: There is no block or file of that name.

    Example:
        ```python
        from prefect_mipro.flows import some_session

        with some_session("session.toml") as session:
            result = rollout_step(row, session=session)
        ```
    """
    plan = session_plan(config, session_id=session_id, credentials=credentials, overrides=overrides)
    backend = some_backend(backend_url=backend_url, credentials=plan.credentials)
    with backend as url, plan.open(url).connected() as session:
        yield session


@contextmanager
def reached(session: str | SessionHandle, *, backend_url: str | None) -> Iterator[SessionHandle]:
    """A handle of an existing session, whose backend runs for the length of the context."""
    if isinstance(session, SessionHandle):
        yield session
        return
    plan = session_plan(session)
    session_id = plan.session_id or plan.settings.mipro.system_id
    if session_id is None:
        raise InputInvalid(
            f"{session!r} names no session; give the name of a saved MiproSessionConfig block, or "
            "say system_id in the config"
        )
    with some_backend(backend_url=backend_url, credentials=plan.credentials) as url:
        yield SessionHandle(
            session_id=session_id,
            backend_url=url or load(MiproCredentials, plan.credentials or "").backend_url,
            credentials=plan.credentials,
        )


@contextmanager
def some_backend(
    *, backend_url: str | None = None, credentials: str | None = None
) -> Iterator[str | None]:
    """The URL of a backend for `create_session`; `None` if a credentials block names it.

    The URL is the given one, else `MIPRO_BACKEND_URL`, else that of an embedded backend, which ends
    with the context. Runs that start together take turns with it.
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
    """A started embedded backend, once no other run uses its sessions."""
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
