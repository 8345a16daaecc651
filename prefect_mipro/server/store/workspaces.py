"""Whose a session is."""

from __future__ import annotations

from sqlalchemy import Connection, select

from prefect_mipro.errors import Conflict, SessionNotFound
from prefect_mipro.server.store.changes import present
from prefect_mipro.server.store.tables import sessions


def workspace_of(connection: Connection, session_id: str) -> str:
    """The workspace that owns the session. Raises SessionNotFound."""
    query = select(sessions.c.workspace).where(sessions.c.session_id == session_id, present)
    workspace = connection.scalar(query)
    if workspace is None:
        raise SessionNotFound.of(session_id)
    return str(workspace)


def check_workspace(connection: Connection, session_id: str, workspace: str) -> None:
    """Raise Conflict if the id is that of another workspace's session."""
    query = select(sessions.c.workspace).where(sessions.c.session_id == session_id)
    if connection.scalar(query) not in (None, workspace):
        raise session_taken(session_id)


def session_taken(session_id: str) -> Conflict:
    """All that another workspace is told of a session."""
    return Conflict(f"the session id {session_id!r} is taken; choose another one")
