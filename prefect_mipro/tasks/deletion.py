"""Tasks that delete a session, or one person's data in it, each with its `a`-prefixed twin."""

from __future__ import annotations

from contextlib import suppress

from prefect import task

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.sessions import ForgetReport
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


# The run's name leaves out whom it is about: Prefect keeps names.
@task(name="forget-data", task_run_name="forget data of {session.session_id}", **REPEATABLE)
def forget_data(
    session: SessionHandle,
    *,
    user: str | None = None,
    rollout_id: str | None = None,
    example_id: str | None = None,
    correlation_id: str | None = None,
    dry_run: bool = False,
) -> ForgetReport:
    """Remove all data of one end user, rollout, example or correlation id from the session.

    Lever versions that show one of the removed texts are emptied, and their candidates retired.
    Counters stay. The name or id appears in no log line, run name, task input or result. Prefect
    does store the parameters of a *flow*, and of a task that is submitted with `delay`: call the
    task directly, and read the name inside the flow.

    Args:
        session: The session's handle.
        user: An end user, as named by `user` in the metadata of rewards.
        rollout_id: One rollout.
        example_id: One example of a data set.
        correlation_id: One conversation. Exactly one of these four is given.
        dry_run: Report what would be removed, and change nothing.

    Returns:
        The number of rollouts and calls, the emptied lever versions, the retired candidates and
        the champion afterwards. The report of a repeat counts only what was left to remove.

    Raises:
        InputInvalid: None or several of the four are given.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect import flow
        from prefect.blocks.system import Secret
        from prefect_mipro.tasks import SessionHandle, forget_data

        @flow
        def erase(session: SessionHandle) -> int:
            return forget_data(session, user=Secret.load("erase-user").get()).rollouts
        ```
    """
    with connection_to(session) as connection:
        return connection.client.forget(
            session.session_id,
            user=user,
            rollout_id=rollout_id,
            example_id=example_id,
            correlation_id=correlation_id,
            dry_run=dry_run,
        )


@task(name="forget-data", task_run_name="forget data of {session.session_id}", **REPEATABLE)
async def aforget_data(
    session: SessionHandle,
    *,
    user: str | None = None,
    rollout_id: str | None = None,
    example_id: str | None = None,
    correlation_id: str | None = None,
    dry_run: bool = False,
) -> ForgetReport:
    """Remove all data of one end user, rollout, example or correlation id; see `forget_data`."""
    async with async_connection_to(session) as connection:
        return await connection.client.forget(
            session.session_id,
            user=user,
            rollout_id=rollout_id,
            example_id=example_id,
            correlation_id=correlation_id,
            dry_run=dry_run,
        )
