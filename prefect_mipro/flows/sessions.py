"""A session for as long as a flow needs it, on whichever backend there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect_mipro.flows.backend import some_backend
from prefect_mipro.tasks.connections import SessionHandle
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
    """`open_session`, on an embedded backend where no other is named.

    The tasks within share one connection; an embedded backend ends with the block, and its
    sessions go on with the next one.
    """
    plan = session_plan(config, session_id=session_id, credentials=credentials, overrides=overrides)
    backend = some_backend(backend_url=backend_url, credentials=plan.credentials)
    with backend as url, plan.open(url).connected() as session:
        yield session
