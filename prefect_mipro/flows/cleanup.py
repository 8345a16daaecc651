"""The clean-up flow: idle sessions, and old versions of their artifacts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from prefect import flow, task
from prefect.client.orchestration import get_client
from pydantic import Field

from prefect_mipro.client.clients import Client
from prefect_mipro.events import SessionEvent, tell
from prefect_mipro.flows.sessions import reached
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.sessions import SessionState, SessionStatus
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.retries import RETRIED

PAGE = 200

# The records of promotions (`-prompt`) are kept for good.
VIEWS = ("-progress", "-leaderboard", "-champion", "-sensors", "-held-out", "-question")


class Idle(StrEnum):
    """What to do with an idle session."""

    LEAVE = "leave"
    PAUSE = "pause"
    CANCEL = "cancel"


class Cleanup(Record):
    """What a run did, or what a trial would have done."""

    trial: bool
    paused: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    deleted_artifacts: int = 0


@flow(name="clean-up")
def clean_up(
    session: str | SessionHandle,
    *,
    idle: Idle = Idle.PAUSE,
    idle_days: Annotated[float, Field(ge=0)] = 30.0,
    artifact_days: Annotated[float, Field(ge=0)] = 90.0,
    versions_kept: Annotated[int, Field(ge=1)] = 10,
    trial: bool = False,
    backend_url: str | None = None,
) -> Cleanup:
    """Pause or cancel idle sessions, and delete old versions of their artifacts.

    Records of promotions and everything that is not this package's are kept.

    Args:
        session: The name of a saved `MiproSessionConfig` block, or a handle. All sessions of its
            backend are checked.
        idle: What to do with idle sessions: `leave`, `pause` or `cancel` them.
        idle_days: The number of days without a call after which a session is idle.
        artifact_days: The age in days from which a version may be deleted.
        versions_kept: The number of versions of each artifact to keep, whatever their age.
        trial: Whether to report what would be done, and do nothing.
        backend_url: The backend's URL, if neither block nor environment names one.

    Returns:
        The sessions paused or cancelled, and the number of versions deleted.

    Raises:
        ConfigNotFound: There is no block or file of that name.
        InputInvalid: The block names no session.

    Example:
        ```python
        from prefect_mipro.flows import clean_up

        report = clean_up("support-bot", idle_days=60, trial=True)
        print(report.paused, report.deleted_artifacts)
        ```
    """
    now = datetime.now(UTC)
    ended: tuple[str, ...] = ()
    if idle is not Idle.LEAVE:
        before = now - timedelta(days=idle_days)
        with reached(session, backend_url=backend_url) as one:
            ended = settle_idle_sessions(one, idle, before, trial=trial)
    before = now - timedelta(days=artifact_days)
    deleted = delete_old_artifacts(before, versions_kept, trial=trial)
    return Cleanup(
        trial=trial,
        paused=ended if idle is Idle.PAUSE else (),
        cancelled=ended if idle is Idle.CANCEL else (),
        deleted_artifacts=deleted,
    )


@task(name="settle-idle-sessions", **RETRIED)
def settle_idle_sessions(
    one: SessionHandle, idle: Idle, before: datetime, *, trial: bool
) -> tuple[str, ...]:
    """Pause or cancel the backend's sessions without a call since `before`. Returns their ids."""
    settled = []
    state = SessionState.PAUSED if idle is Idle.PAUSE else SessionState.CANCELLED
    event = SessionEvent.PAUSED if idle is Idle.PAUSE else SessionEvent.CANCELLED
    with connection_to(one) as connection:
        client = connection.client
        # Collected first, because changed sessions would move between the pages.
        for session_id in list(_stale(_sessions(client), state, before)):
            status = client.session_status(session_id)
            if last_used(status) >= before:
                continue
            settled.append(session_id)
            run_logger().info("Session %s: no call since %s", session_id, last_used(status))
            if not trial:
                client.change_state(session_id, state)
                tell(event, session_id)
    return tuple(settled)


@task(name="delete-old-artifacts", **RETRIED)
def delete_old_artifacts(before: datetime, versions_kept: int, *, trial: bool) -> int:
    """Delete old versions of this package's artifacts. Returns their number."""
    old = list(old_versions(_artifacts(), before, versions_kept))
    if not trial:
        with get_client(sync_client=True) as client:
            for artifact_id in old:
                client.request("DELETE", "/artifacts/{id}", path_params={"id": artifact_id})
    return len(old)


def last_used(status: SessionStatus) -> datetime:
    """The time at which the session last changed or served a call."""
    frames = [frame.created_at for frame in status.sensor_frames if frame.created_at]
    return max([status.updated_at, *frames])


def old_versions(
    newest_first: Iterable[Mapping[str, Any]], before: datetime, versions_kept: int
) -> Iterator[str]:
    """The ids of the artifacts to delete."""
    seen: Counter[str] = Counter()
    for artifact in newest_first:
        key = artifact["key"] or ""
        if not (key.startswith("mipro-") and key.endswith(VIEWS)):
            continue
        seen[key] += 1
        if seen[key] > versions_kept and datetime.fromisoformat(artifact["created"]) < before:
            yield artifact["id"]


def _sessions(client: Client) -> Iterator[JsonObject]:
    cursor = None
    while True:
        answer = client.sessions(limit=PAGE, cursor=cursor)
        yield from answer["items"]
        cursor = answer.get("next_cursor")
        if not cursor:
            return


def _stale(listed: Iterable[JsonObject], state: SessionState, before: datetime) -> Iterator[str]:
    """The ids of sessions that can still enter the state and have not changed since `before`."""
    for session in listed:
        present = SessionState(session["state"])
        if present.final or present is state:
            continue
        if datetime.fromisoformat(session["updated_at"]) < before:
            yield session["session_id"]


def _artifacts() -> Iterator[JsonObject]:
    """This package's artifacts, newest first, without their content."""
    wanted = {
        "artifacts": {"key": {"like_": "mipro-%"}},
        "sort": "CREATED_DESC",
        "limit": PAGE,
    }
    with get_client(sync_client=True) as client:
        offset = 0
        while True:
            answer = client.request("POST", "/artifacts/filter", json={**wanted, "offset": offset})
            page = answer.json()
            for artifact in page:
                yield {name: artifact[name] for name in ("id", "key", "created")}
            offset += len(page)
            if len(page) < PAGE:
                return
