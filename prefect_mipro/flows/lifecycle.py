"""What becomes of a run's sessions when the run is cancelled: hooks for any flow.

    @flow(on_cancellation=[pause_sessions])

Prefect runs them in another process than the flow's, which may be gone. They find the sessions by
the run's labels, and may run twice. A flow without a hook leaves its sessions as they are. So does
a run that crashes or fails: the next one goes on with them.
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
    """Stop proposals, which cost tokens, until a run goes on with the session.

    A session that somebody had paused before stays paused.
    """
    for session in sessions_of(flow_run.id):
        _leave(session, SessionState.PAUSED, flow_run)


def cancel_sessions(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the sessions for good; their champions are served from then on."""
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
                # First, so that a hook that dies in between does not stop the next run.
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
