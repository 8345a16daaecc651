"""The sessions of a flow run: those it created, joined, or left behind when it was cancelled.

A session remembers the run that created it, in its metadata; a run remembers its sessions, in its
labels. Both outlive the run's process and hold no secret.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.transactions import Transaction, get_transaction

from prefect_mipro.events import SessionEvent, tell
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.sessions import SessionState, SessionStatus
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.session_handle import SessionHandle

CREATOR = "prefect_flow_run_id"
SESSION_LABEL = "prefect-mipro.session."
FIRST_ROLLOUT_LABEL = "prefect-mipro.first-rollout."

_CREATED = "prefect-mipro.created"


def creation_metadata(metadata: Mapping[str, Any] | None) -> JsonObject:
    """The metadata of a new session: the caller's, and the flow run that creates it."""
    run_id = flow_run.get_id()
    return {**(metadata or {}), **({CREATOR: str(run_id)} if run_id else {})}


def joined(session: SessionHandle, status: SessionStatus) -> None:
    """Note that the present flow run, if there is one, works on the session.

    A session that was paused because an earlier run was cancelled is resumed.
    """
    run_id = flow_run.get_id()
    if run_id is None:
        return
    _label(session, run_id)
    if status.metadata.get(CREATOR) == str(run_id):
        transaction = get_transaction()
        if transaction is not None:
            transaction.set(_CREATED, session)
        tell(SessionEvent.CREATED, session.session_id)
        return
    # Even if it has been resumed since: a later pause is then a person's and stays.
    paused_by_cancellation = _forget_pause(session.session_id)
    if paused_by_cancellation and status.status is SessionState.PAUSED:
        with connection_to(session) as connection:
            connection.client.change_state(session.session_id, SessionState.RUNNING)
    if not status.status.final:
        tell(SessionEvent.RESUMED, session.session_id)


def first_rollout(session: SessionHandle, status: SessionStatus) -> int:
    """The number of rollouts the session had when this flow run began, the same for each attempt.

    A retried run counts from there, so that its budget is spent once.
    """
    run_id = flow_run.get_id()
    if run_id is None:
        return status.rollout_count
    label = f"{FIRST_ROLLOUT_LABEL}{session.session_id}"
    with _known_anyway(session.session_id), get_client(sync_client=True) as client:
        known = client.read_flow_run(UUID(run_id)).labels.get(label)
        if known is not None:
            return int(known)
        client.update_flow_run_labels(UUID(run_id), {label: status.rollout_count})
    return status.rollout_count


def undo_creation(transaction: Transaction) -> None:
    """Rollback hook of `create_session`: delete the session that this run created, and no other.

    A session with rollouts may have live traffic: it is cancelled, and still serves its champion.
    """
    session = transaction.get(_CREATED, None)
    if session is None:
        return
    session_id = session.session_id
    with connection_to(session) as connection:
        if connection.client.session_status(session_id).rollout_count:
            connection.client.change_state(session_id, SessionState.CANCELLED)
            run_logger().warning(
                "Session %s is cancelled, because the transaction that created it was rolled back "
                "after its first rollouts; to use its id again, delete the session",
                session_id,
            )
        else:
            connection.client.delete_session(session_id)
    tell(SessionEvent.CANCELLED, session_id)


def sessions_of(flow_run_id: UUID) -> tuple[SessionHandle, ...]:
    """The sessions that a flow run and its subflows have worked on."""
    with get_client(sync_client=True) as client:
        labels = client.read_flow_run(flow_run_id).labels
    handles = (value for key, value in labels.items() if key.startswith(SESSION_LABEL))
    return tuple(SessionHandle.model_validate_json(str(handle)) for handle in handles)


def note_pause(session_id: str, flow_run_id: UUID) -> None:
    """Remember that a cancelled run, not a person, paused the session: the next run resumes it."""
    value = {"session_id": session_id, "flow_run_id": str(flow_run_id)}
    with get_client(sync_client=True) as client:
        try:
            client.create_variable(VariableCreate(name=_pause_name(session_id), value=value))
        except ObjectAlreadyExists:
            return


def _forget_pause(session_id: str) -> bool:
    """Whether a cancelled run had paused the session. The note is removed."""
    with get_client(sync_client=True) as client:
        try:
            client.delete_variable_by_name(_pause_name(session_id))
        except ObjectNotFound:
            return False
    return True


def _pause_name(session_id: str) -> str:
    """The name of the session's Variable, unique, in the characters Prefect allows."""
    slug = re.sub(r"[^a-z0-9]+", "_", session_id.lower())[:80]
    return f"mipro_paused_{slug}_{hashlib.sha256(session_id.encode()).hexdigest()[:8]}"


def _label(session: SessionHandle, run_id: str) -> None:
    handle = session.model_dump_json(include=_HANDLE_FIELDS, exclude_none=True)
    with _known_anyway(session.session_id), get_client(sync_client=True) as client:
        for labelled in dict.fromkeys((run_id, _root_id(run_id))):
            client.update_flow_run_labels(
                UUID(labelled), {f"{SESSION_LABEL}{session.session_id}": handle}
            )


def _root_id(run_id: str) -> str:
    """The run that a person or a schedule started, which is the one to be cancelled."""
    return str(flow_run.get_root_flow_run_id()) if flow_run.get_parent_flow_run_id() else run_id


@contextmanager
def _known_anyway(session_id: str) -> Iterator[None]:
    try:
        yield
    except (PrefectException, httpx.HTTPError) as error:
        # A run without its labels works, but its cancellation does not find the session.
        run_logger().warning("Could not note session %s at the flow run: %s", session_id, error)


_HANDLE_FIELDS = {"session_id", "backend_url", "correlation_id", "credentials"}
