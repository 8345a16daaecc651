"""Runs that are cancelled, fail early or come again, and what becomes of their sessions."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run as present_run
from prefect.states import Cancelling
from prefect.transactions import transaction

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import SessionEnded, SessionNotFound
from prefect_mipro.events import Cause, SessionEvent, changes
from prefect_mipro.flows.lifecycle import cancel_sessions, pause_sessions
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.tasks import (
    SessionHandle,
    create_session,
    pause_session,
    session_status,
)
from prefect_mipro.tasks.ownership import CREATOR, SESSION_LABEL, first_rollout, sessions_of
from tests.plugin.conftest import config, new_id
from tests.plugin.examples import candidate, status

served = pytest.mark.usefixtures("prefect_server")


@flow
def opening(session_id: str, backend_url: str) -> str:
    """A flow whose subflow opens a session; it answers the id of its run."""
    opening_below(session_id, backend_url)
    return str(present_run.get_id())


@flow
def opening_below(session_id: str, backend_url: str) -> None:
    create_session(config(), session_id=session_id, backend_url=backend_url)


@flow
def failing_early(session_id: str, backend_url: str, rollouts: int = 0) -> None:
    with transaction():
        session = create_session(config(), session_id=session_id, backend_url=backend_url)
        for _ in range(rollouts):
            with session.rollout() as rollout:
                rollout.ask({"request": "play jazz #music"})
        raise ZeroDivisionError("the rows cannot be read")


def cancelled(run_id: str, hook: Any) -> None:
    """What the runner does when the run is cancelled."""
    with get_client(sync_client=True) as client:
        hook(opening, client.read_flow_run(UUID(run_id)), Cancelling())


def state_of(session_id: str, backend: EmbeddedBackend) -> SessionState:
    handle = SessionHandle(session_id=session_id, backend_url=backend.url)
    return session_status.fn(handle).status


@served
def test_a_cancelled_run_pauses_its_session_once_and_the_next_run_resumes_it(
    backend: EmbeddedBackend,
) -> None:
    session_id = new_id("Paused")
    run_id = opening(session_id, backend.url)
    assert [session.session_id for session in sessions_of(UUID(run_id))] == [session_id]
    for _ in range(2):
        cancelled(run_id, pause_sessions)
        assert state_of(session_id, backend) is SessionState.PAUSED
    opening(session_id, backend.url)
    assert state_of(session_id, backend) is SessionState.RUNNING


@served
def test_a_session_that_a_person_paused_stays_paused(backend: EmbeddedBackend) -> None:
    session_id = new_id("Paused")
    run_id = opening(session_id, backend.url)
    pause_session.fn(SessionHandle(session_id=session_id, backend_url=backend.url))
    cancelled(run_id, pause_sessions)
    opening(session_id, backend.url)
    assert state_of(session_id, backend) is SessionState.PAUSED


@served
def test_a_cancelled_run_may_end_its_session(backend: EmbeddedBackend) -> None:
    session_id = new_id()
    run_id = opening(session_id, backend.url)
    for hook in (cancel_sessions, pause_sessions):
        cancelled(run_id, hook)
        assert state_of(session_id, backend) is SessionState.CANCELLED


@served
def test_first_steps_that_fail_delete_the_session_that_the_run_created(
    backend: EmbeddedBackend,
) -> None:
    session_id = new_id()
    with pytest.raises(ZeroDivisionError):
        failing_early(session_id, backend.url)
    with pytest.raises(SessionNotFound):
        state_of(session_id, backend)
    opening(session_id, backend.url)
    assert state_of(session_id, backend) is SessionState.RUNNING, "the id is not lost"


@served
def test_a_session_with_rollouts_is_not_deleted_but_cancelled_for_good(
    backend: EmbeddedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = new_id()
    with pytest.raises(ZeroDivisionError):
        failing_early(session_id, backend.url, rollouts=1)
    assert state_of(session_id, backend) is SessionState.CANCELLED
    assert f"Session {session_id} is cancelled" in caplog.text
    with pytest.raises(SessionEnded, match="delete the session first"):
        opening(session_id, backend.url)


@served
def test_first_steps_that_fail_leave_the_session_of_an_earlier_run(
    backend: EmbeddedBackend,
) -> None:
    session_id = new_id()
    run_id = opening(session_id, backend.url)
    with pytest.raises(ZeroDivisionError):
        failing_early(session_id, backend.url)
    handle = SessionHandle(session_id=session_id, backend_url=backend.url)
    told = session_status.fn(handle)
    assert told.status is SessionState.RUNNING
    assert told.metadata[CREATOR] != run_id, "the subflow created it"


@served
def test_a_backend_that_is_gone_leaves_nothing_to_pause(backend: EmbeddedBackend) -> None:
    session_id = new_id()
    run_id = opening(session_id, backend.url)
    gone = SessionHandle(session_id=session_id, backend_url="http://127.0.0.1:9")
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(
            UUID(run_id), {f"{SESSION_LABEL}{session_id}": gone.model_dump_json()}
        )
    cancelled(run_id, pause_sessions)
    assert state_of(session_id, backend) is SessionState.RUNNING


@served
def test_each_attempt_of_a_run_counts_from_the_same_rollout(backend: EmbeddedBackend) -> None:
    counted: list[int] = []

    @flow(retries=1)
    def retried(session: SessionHandle) -> None:
        told = status(candidate(1), rollout_count=7 + 5 * len(counted))
        counted.append(first_rollout(session, told))
        if len(counted) == 1:
            raise ZeroDivisionError

    retried(SessionHandle(session_id=new_id(), backend_url=backend.url))
    assert counted == [7, 7]


def test_what_a_run_saw_happen_is_told_with_its_cause() -> None:
    before = status(candidate(1), candidate(2))
    after = status(
        candidate(1),
        candidate(2, status="retired"),
        candidate(3),
        champion=3,
        status=SessionState.SUCCEEDED,
        stop_reason="all rollouts are used up",
    )
    told = [
        (change.event, change.facts.get("number"), change.cause)
        for change in changes(before, after)
    ]
    assert told == [
        (SessionEvent.RETIRED, 2, None),
        (SessionEvent.PROPOSED, 3, None),
        (SessionEvent.PROMOTED, 3, Cause.DUEL),
        (SessionEvent.FINISHED, None, None),
    ]


def test_nothing_is_told_where_nothing_happened() -> None:
    same = status(candidate(1))
    assert not list(changes(same, same))
