"""Cancellation hooks for any flow: they pause or end the sessions of a cancelled run.

    @flow(on_cancellation=[pause_sessions])

Prefect runs them outside the flow's process, which may be gone, and may run them twice. They find
the sessions by the run's labels. A flow without a hook leaves its sessions as they are, and so does
a run that crashes or fails: the next run continues them.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State

from prefect_mipro.errors import MiproError
from prefect_mipro.events import SessionEvent, tell
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.ownership import note_pause, sessions_of


def pause_sessions(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Pause the sessions of a cancelled run, so that they make no proposals, which cost tokens.

    The next run that works on a session resumes it, unless a person had paused it.
    """
    for session in sessions_of(flow_run.id):
        _leave(session, SessionState.PAUSED, flow_run)


def cancel_sessions(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the sessions of a cancelled run for good. From then on they serve their champions."""
    for session in sessions_of(flow_run.id):
        _leave(session, SessionState.CANCELLED, flow_run)


def _leave(session: SessionHandle, state: SessionState, flow_run: FlowRun) -> None:
    log, session_id = run_logger(), session.session_id
    try:
        with connection_to(session) as connection:
            present = connection.client.session_status(session_id).status
            if present is state or present.final:
                log.info("Session %s is %s already", session_id, present)
                return
            if state is SessionState.PAUSED:
                # First, so that the next run resumes the session even if this hook dies here.
                note_pause(session_id, flow_run.id)
            connection.client.change_state(session_id, state)
    except MiproError as error:
        # An embedded backend ends with its run: there is nothing left to pause.
        log.warning("Session %s is left as it is: %s", session_id, error)
        return
    log.info("Session %s is %s, because its run was cancelled", session_id, state)
    tell(_EVENTS[state], session_id)


_EVENTS = {
    SessionState.PAUSED: SessionEvent.PAUSED,
    SessionState.CANCELLED: SessionEvent.CANCELLED,
}
