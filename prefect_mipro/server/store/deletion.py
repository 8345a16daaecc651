"""Deleting a session: what it has many rows of piece by piece, then all the rest at once.

From its beginning on nobody finds the session, however long it takes and whatever breaks it off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Text,
    bindparam,
    delete,
    select,
    true,
    update,
)

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.server.store.changes import UNDER_DELETION, present
from prefect_mipro.server.store.tables import (
    candidates,
    duels,
    events,
    example_rewards,
    forget_requests,
    frames,
    lever_versions,
    metadata,
    past_epochs,
    proposers,
    removed_rollouts,
    reward_blocks,
    rewards,
    rollouts,
    sessions,
    traces,
)

PIECE = 500
# Calls that are under way are theirs: what comes of them must find its rollout, or no session.
NEWEST_ROLLOUTS = 1_000

_SESSION = bindparam("of_session", type_=Text)

_OLDER = rollouts.c.position <= (
    select(sessions.c.rollouts - NEWEST_ROLLOUTS)
    .where(sessions.c.session_id == _SESSION)
    .scalar_subquery()
)
# Whose rows grow with the traffic. Calls come first: they are found by their frames.
_GROWING: tuple[tuple[Column[str] | Column[int], ColumnElement[bool]], ...] = (
    (events.c.seq, true()),
    (rewards.c.reward_id, true()),
    (rollouts.c.rollout_id, _OLDER),
    (removed_rollouts.c.rollout_id, true()),
)
_REST = (
    rollouts,
    removed_rollouts,
    proposers,
    example_rewards,
    reward_blocks,
    duels,
    past_epochs,
    candidates,
    lever_versions,
    forget_requests,
    sessions,
)
# Its key goes with the row, so that not even those wait for it who only refer to it.
_LOCK = select(sessions.c.session_id).where(sessions.c.session_id == _SESSION).with_for_update()
_FRAMES = (
    select(frames.c.position, frames.c.rollout_id, frames.c.trace_ids, frames.c.created_at)
    .where(frames.c.session_id == _SESSION)
    .order_by(frames.c.position)
)


def begin(connection: Connection, session_id: str) -> None:
    """Hide the session, in any state, from everything but its deletion. Raises SessionNotFound."""
    begun = update(sessions).where(sessions.c.session_id == session_id, present)
    if not connection.execute(begun.values(version=UNDER_DELETION)).rowcount:
        raise SessionNotFound.of(session_id)


def begun(connection: Connection) -> tuple[str, ...]:
    """The ids of sessions whose deletion has begun and not ended."""
    return tuple(connection.scalars(select(sessions.c.session_id).where(~present)))


def thin(connection: Connection, session_id: str, *, limit: int) -> int:
    """Delete at most `limit` of a session's calls, events, rewards and older rollouts.

    Returns how many were deleted. Counters stay: the session is about to be deleted as a whole.
    """
    return _thin(connection, session_id, limit=limit)


def delete_all(connection: Connection, session_id: str) -> None:
    """Delete the session and all that is left of it. Its id is free again."""
    of = {"of_session": session_id}
    if connection.scalar(_LOCK, of) is None:
        raise SessionNotFound.of(session_id)
    while _thin(connection, session_id, limit=PIECE):
        pass
    for table in _REST:
        connection.execute(delete(table).where(table.c.session_id == _SESSION), of)


def _thin(connection: Connection, session_id: str, *, limit: int) -> int:
    """Of the first kind of row that it has any of."""
    deleted = delete_calls(connection, first_calls(connection, session_id, limit), session_id)
    for key, condition in _GROWING:
        deleted = deleted or _delete_some(connection, key, condition, session_id, limit=limit)
    return deleted


def first_calls(connection: Connection, session_id: str, limit: int) -> Sequence[Row[Any]]:
    """The frames of the session's first calls and rewards."""
    return connection.execute(_FRAMES.limit(limit), {"of_session": session_id}).all()


def delete_calls(connection: Connection, found: Sequence[Row[Any]], session_id: str) -> int:
    """Delete these frames of the session with their traces; how many."""
    if not found:
        return 0
    of = {"of_session": session_id}
    connection.execute(
        delete(traces).where(traces.c.session_id == _SESSION, traces.c.trace_id.in_(named(found))),
        of,
    )
    positions = [frame.position for frame in found]
    connection.execute(delete(frames).where(frames.c.position.in_(positions)))
    return len(found)


def named(found: Iterable[Row[Any]]) -> set[str]:
    """What frames name as their traces.

    A reward's frame names what its sender called a trace, which may be another session's.
    """
    return {trace_id for frame in found for trace_id in frame.trace_ids}


def _delete_some(
    connection: Connection,
    key: Column[str] | Column[int],
    condition: ColumnElement[bool],
    session_id: str,
    *,
    limit: int,
) -> int:
    table = metadata.tables[key.table.name]
    some = select(key).where(table.c.session_id == _SESSION, condition).limit(limit)
    query = delete(table).where(table.c.session_id == _SESSION, key.in_(some))
    return connection.execute(query, {"of_session": session_id}).rowcount
