"""Keys, and whose a session is: the part of the store that the door to the API asks."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, insert, select, update

from prefect_mipro.errors import Conflict, NotFound
from prefect_mipro.models.keys import Key
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.store.changes import changing, session_missing
from prefect_mipro.server.store.tables import keys, sessions

ROTATED = "mipro.session.url_rotated"


class Access(Protocol):
    """What the services ask of a store about keys and workspaces."""

    async def keys(self) -> tuple[Key, ...]:
        """All of them, the revoked ones too, in the order in which they were made."""
        ...

    async def add_key(self, key: Key) -> None:
        """Insert it; a name that was ever given raises Conflict."""
        ...

    async def revoke_key(self, name: str, *, at: datetime) -> Key:
        """Take a key out of use for good. Raises NotFound; one that is revoked stays as it is."""
        ...

    async def workspace_of(self, session_id: str) -> str:
        """Whose the session is. Raises SessionNotFound."""
        ...

    async def rotate_secret(self, session_id: str, secret: str, *, at: datetime) -> Session:
        """Give the session's proxy URL another secret, in any state of the session."""
        ...


def all_keys(connection: Connection) -> tuple[Key, ...]:
    rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.key_id)).mappings()
    return tuple(Key.model_validate(dict(row)) for row in rows)


def add_key(connection: Connection, key: Key) -> None:
    if connection.scalar(select(keys.c.name).where(keys.c.name == key.name)) is not None:
        raise Conflict(
            f"a key named {key.name!r} was made before; choose another name, "
            "so that each stands for one key for good"
        )
    connection.execute(insert(keys), dict(key))


def revoke_key(connection: Connection, name: str, *, at: datetime) -> Key:
    named = keys.c.name == name
    connection.execute(update(keys).where(named, keys.c.revoked_at.is_(None)).values(revoked_at=at))
    row = connection.execute(select(keys).where(named)).mappings().first()
    if row is None:
        raise NotFound(f"no key has the name {name!r}; list the keys for their names")
    return Key.model_validate(dict(row))


def workspace_of(connection: Connection, session_id: str) -> str:
    query = select(sessions.c.workspace).where(sessions.c.session_id == session_id)
    workspace = connection.scalar(query)
    if workspace is None:
        raise session_missing(session_id)
    return workspace


def check_workspace(connection: Connection, session_id: str, workspace: str) -> None:
    """Raise Conflict if the id is that of another workspace's session."""
    query = select(sessions.c.workspace).where(sessions.c.session_id == session_id)
    if connection.scalar(query) not in (None, workspace):
        raise session_taken(session_id)


def session_taken(session_id: str) -> Conflict:
    """All that another workspace is told of a session."""
    return Conflict(f"the session id {session_id!r} is taken; choose another one")


def rotate_secret(connection: Connection, session_id: str, secret: str, *, at: datetime) -> Session:
    with changing(connection, session_id) as change:
        change.set(proxy_secret=secret)
        change.record(
            ROTATED,
            "the session's URLs have a new secret; the earlier ones are refused",
            data={},
            at=at,
        )
        return change.written_session()
