"""Rollouts that ran without their candidate's prompt, and the warnings of them in a run's log."""

from __future__ import annotations

from prefect_mipro.errors import MiproError
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.tasks.connections import AsyncConnection, Connection, SessionHandle
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.notices import Notice, due

WAY_OUT = (
    "Send the messages of the config's initial_prompt (rollout.ask(row) and rollout.messages(row) "
    "do), or state there what your program sends"
)

_SUBJECTS = {Notice.UNAPPLIED: "Rollouts", Notice.UNAPPLIED_REWARD: "Rewarded rollouts"}


def tell_unapplied(
    connection: Connection,
    session: SessionHandle,
    notice: Notice = Notice.UNAPPLIED,
    *,
    rollouts: int = 1,
) -> None:
    """Count rollouts without their candidate's prompt, and log a warning when it is due."""
    if number := due(session.session_id, notice, more=rollouts):
        try:
            status = connection.client.session_status(session.session_id)
        except MiproError:
            status = None
        _warn(session, notice, number, status)


async def atell_unapplied(
    connection: AsyncConnection,
    session: SessionHandle,
    notice: Notice = Notice.UNAPPLIED,
    *,
    rollouts: int = 1,
) -> None:
    """Count rollouts without their candidate's prompt, and log a warning when it is due."""
    if number := due(session.session_id, notice, more=rollouts):
        try:
            status = await connection.client.session_status(session.session_id)
        except MiproError:
            status = None
        _warn(session, notice, number, status)


def _warn(
    session: SessionHandle, notice: Notice, number: int, status: SessionStatus | None
) -> None:
    reason = status.context_apply.last_reason if status else None
    run_logger().warning(
        "%s of session %s ran without the candidate's prompt (%d so far), so nothing is learned "
        "from them: %s. %s",
        _SUBJECTS[notice],
        session.session_id,
        number,
        reason or "their messages were not those of the session's initial_prompt",
        WAY_OUT,
    )
