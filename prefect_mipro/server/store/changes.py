"""A change of one session: its row locked, its counters and events written in one go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from prefect_mipro.errors import CandidateNotFound, Overloaded, SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.store.rows import RowValues, Values, session_record
from prefect_mipro.server.store.schema import candidates, events, sessions

# The version of a session of which not all is here yet, and of one of which not all is here any
# more: nothing but its deletion finds that one.
UNDER_IMPORT = 0
UNDER_DELETION = -1
WAIT_SECONDS = 5.0

present = sessions.c.version != UNDER_DELETION

# Without the config and the metadata: they may be long, and no change depends on them. The key
# stays shared: PostgreSQL takes a share of it for each row that refers to the session, and a call
# that is being recorded would wait for a reward that waits for its rollout.
_LOCK = (
    select(*(c for c in sessions.c if c.name not in {"config", "metadata"}))
    .where(sessions.c.session_id == bindparam("session_id"), present)
    .with_for_update(key_share=True)
)
_SESSION = select(sessions).where(sessions.c.session_id == bindparam("session_id"), present)
_UPDATE = update(sessions).where(sessions.c.session_id == bindparam("of_session"))
_EXISTS = select(sessions.c.session_id).where(
    sessions.c.session_id == bindparam("session_id"), present
)


class Change:
    """What one transaction does to a session's row and event feed.

    Whoever locks the row first goes first, so that counters can be read, then written.
    """

    def __init__(self, connection: Connection, row: RowValues) -> None:
        self.connection = connection
        self._row = row
        self._values: Values = {}
        self._events: list[Values] = []

    @property
    def session_id(self) -> str:
        return str(self._row["session_id"])

    def __getitem__(self, column: str) -> Any:
        return self._values.get(column, self._row[column])

    def set(self, **values: Any) -> None:
        """Give columns of the session's row new values."""
        self._values.update(values)

    def record(self, event_type: str, message: str, *, data: JsonObject, at: datetime) -> None:
        """Append an event, and make it the session's version."""
        seq = self["version"] + 1
        self.set(version=seq, updated_at=at)
        self._events.append(
            {
                "session_id": self.session_id,
                "seq": seq,
                "event_type": event_type,
                "message": message,
                "data": data,
                "created_at": at,
            }
        )

    def write(self) -> None:
        """Write what was set and recorded since the last time."""
        if self._values:
            self.connection.execute(_UPDATE, {"of_session": self.session_id, **self._values})
        if self._events:
            self.connection.execute(insert(events), self._events)
        self._row = {**self._row, **self._values}
        self._values, self._events = {}, []

    def written_session(self) -> Session:
        """Write, and read the whole session."""
        self.write()
        return read_session(self.connection, self.session_id)


@contextmanager
def changing(
    connection: Connection, session_id: str, *, under_import: bool = False
) -> Iterator[Change]:
    """Lock the session, and write at the end what the change holds. Raises SessionNotFound.

    While the session is under import only the import changes it, else Overloaded: an event would
    take the number of one that is still to come.
    """
    row = connection.execute(_LOCK, {"session_id": session_id}).mappings().first()
    if row is None:
        raise SessionNotFound.of(session_id)
    if row["version"] == UNDER_IMPORT and not under_import:
        raise Overloaded(
            f"session {session_id!r} is being imported; repeat this when that has ended",
            retry_after_seconds=WAIT_SECONDS,
        )
    change = Change(connection, row)
    yield change
    change.write()


def read_session(connection: Connection, session_id: str) -> Session:
    """The session. Raises SessionNotFound."""
    row = connection.execute(_SESSION, {"session_id": session_id}).mappings().first()
    if row is None:
        raise SessionNotFound.of(session_id)
    return session_record(row)


def check_session(connection: Connection, session_id: str) -> None:
    """Raise SessionNotFound unless the session is there."""
    if connection.scalar(_EXISTS, {"session_id": session_id}) is None:
        raise SessionNotFound.of(session_id)


def check_candidates(connection: Connection, session_id: str, *candidate_ids: str) -> None:
    """Raise CandidateNotFound unless all of them are the session's own."""
    found = connection.scalars(
        select(candidates.c.candidate_id).where(
            candidates.c.candidate_id.in_(candidate_ids), candidates.c.session_id == session_id
        )
    )
    for missing in sorted(set(candidate_ids) - set(found)):
        raise CandidateNotFound.of(missing, session_id)


def under_deletion(session_id: str) -> Overloaded:
    return Overloaded(
        f"session {session_id!r} is being deleted; its id is free when that has ended",
        retry_after_seconds=WAIT_SECONDS,
    )
