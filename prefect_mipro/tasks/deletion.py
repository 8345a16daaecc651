"""Deleting a session as a task: a sync one, and its `a`-prefixed twin."""

from __future__ import annotations

from contextlib import suppress

from prefect import task

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.tasks.connections import SessionHandle, async_connection_to, connection_to
from prefect_mipro.tasks.repeats import REPEATABLE


@task(name="delete-session", task_run_name="delete {session.session_id}", **REPEATABLE)
def delete_session(session: SessionHandle) -> None:
    """Delete the session and all that is known of it; one that is not there is deleted already."""
    with connection_to(session) as connection, suppress(SessionNotFound):
        connection.client.delete_session(session.session_id)


@task(name="delete-session", task_run_name="delete {session.session_id}", **REPEATABLE)
async def adelete_session(session: SessionHandle) -> None:
    """Delete the session and all that is known of it; one that is not there is deleted already."""
    async with async_connection_to(session) as connection:
        with suppress(SessionNotFound):
            await connection.client.delete_session(session.session_id)
