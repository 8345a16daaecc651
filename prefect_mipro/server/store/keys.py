"""Keys, and the workspaces that they open."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from prefect_mipro.errors import Conflict, NotFound, SessionNotFound
from prefect_mipro.models.keys import Key
from prefect_mipro.server.store.changes import present
from prefect_mipro.server.store.schema import keys, sessions


def all_keys(connection: Connection) -> tuple[Key, ...]:
    """All keys, revoked ones too, in the order in which they were made."""
    rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.key_id)).mappings()
    return tuple(Key.model_validate(dict(row)) for row in rows)


def add_key(connection: Connection, key: Key) -> None:
    """Insert a key. Raises Conflict for a name that was ever given."""
    if connection.scalar(select(keys.c.name).where(keys.c.name == key.name)) is not None:
        raise Conflict(
            f"a key named {key.name!r} was made before; choose another name, "
            "so that each stands for one key for good"
        )
    connection.execute(insert(keys), dict(key))


def revoke_key(connection: Connection, name: str, *, at: datetime) -> Key:
    """Take a key out of use for good; a revoked key stays as it is. Raises NotFound."""
    named = keys.c.name == name
    connection.execute(update(keys).where(named, keys.c.revoked_at.is_(None)).values(revoked_at=at))
    row = connection.execute(select(keys).where(named)).mappings().first()
    if row is None:
        raise NotFound(f"no key has the name {name!r}; list the keys for their names")
    return Key.model_validate(dict(row))


def workspace_of(connection: Connection, session_id: str) -> str:
    """The workspace that owns the session. Raises SessionNotFound."""
    query = select(sessions.c.workspace).where(sessions.c.session_id == session_id, present)
    workspace = connection.scalar(query)
    if workspace is None:
        raise SessionNotFound.of(session_id)
    return str(workspace)


def check_workspace(connection: Connection, session_id: str, workspace: str) -> None:
    """Raise Conflict if the id is that of another workspace's session."""
    query = select(sessions.c.workspace).where(sessions.c.session_id == session_id)
    if connection.scalar(query) not in (None, workspace):
        raise session_taken(session_id)


def session_taken(session_id: str) -> Conflict:
    """All that another workspace is told of a session."""
    return Conflict(f"the session id {session_id!r} is taken; choose another one")
