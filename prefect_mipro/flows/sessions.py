"""A session for as long as a flow needs it, on whichever backend there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect_mipro.flows.backend import some_backend
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.opening import ConfigSource, session_plan


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
