"""A session part by part: its rows as plain JSON, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    Select,
    select,
    tuple_,
)

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.sensors import SensorKind
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.store import cursors
from prefect_mipro.server.store.changes import check_session
from prefect_mipro.server.store.records import Page
from prefect_mipro.server.store.tables import (
    candidates,
    duels,
    events,
    example_rewards,
    frames,
    lever_versions,
    past_epochs,
    removed_rollouts,
    reward_blocks,
    rewards,
    rollouts,
    sessions,
    traces,
)

# With the session's id before it, each of these keys is that of an index.
_KEYS: dict[Part, tuple[Column[Any], ...]] = {
    Part.LEVER_VERSION: (lever_versions.c.lever, lever_versions.c.version),
    Part.CANDIDATE: (candidates.c.number,),
    Part.DUEL: (duels.c.number,),
    Part.PAST_EPOCH: (past_epochs.c.epoch,),
    Part.ROLLOUT: (rollouts.c.rollout_id,),
    Part.REMOVED_ROLLOUT: (removed_rollouts.c.rollout_id,),
    Part.REWARD: (rewards.c.rollout_id,),
    Part.REWARD_BLOCK: (
        reward_blocks.c.epoch,
        reward_blocks.c.block,
        reward_blocks.c.candidate_id,
    ),
    Part.EXAMPLE_REWARD: (example_rewards.c.example_key,),
    Part.EVENT: (events.c.seq,),
}
_NOT_TOLD = frozenset({"session_id", "proxy_secret", "digest_key", "workspace"})


def read(
    connection: Connection, session: Session, part: Part, *, limit: int, cursor: str | None = None
) -> Page[JsonObject]:
    """A page of a part's rows as plain JSON, by their key, without the session's secrets.

    Rollouts and traces are limited to the rollouts that `session` counts: later ones may run with
    candidates that were not listed yet. A trace has its sensor frame under `frame`. A page may have
    fewer rows than `limit`, or none, and another page after it.
    """
    if part is Part.SESSION:
        return Page((_session(connection, session.session_id),))
    if part is Part.TRACE:
        return _calls(connection, session, limit=limit, cursor=cursor)
    key = _KEYS[part]
    conditions = [rollouts.c.position <= session.rollouts] if part is Part.ROLLOUT else []
    query = _rows_of(session, key, limit=limit, cursor=cursor).where(*conditions)
    rows = connection.execute(query).mappings().all()
    return Page(tuple(_told(row) for row in rows), _next(rows, key, limit))


def _session(connection: Connection, session_id: str) -> JsonObject:
    check_session(connection, session_id)
    query = select(sessions).where(sessions.c.session_id == session_id)
    row = connection.execute(query).mappings().one()
    return {"session_id": session_id, **_told(row)}


def _calls(
    connection: Connection, session: Session, *, limit: int, cursor: str | None
) -> Page[JsonObject]:
    """Traces with the frames of their sensors, found by the frames: those have an index."""
    key = (frames.c.position,)
    query = _rows_of(session, key, limit=limit, cursor=cursor)
    found = connection.execute(query).mappings().all()
    frame_of = {row["trace_ids"][0]: row for row in found if _is_of_call(row)}
    trace_of = _traces(connection, session, frame_of) if frame_of else {}
    items = tuple(
        {**_call_told(trace_of[trace_id]), "frame": _call_told(frame)}
        for trace_id, frame in frame_of.items()
        if trace_id in trace_of
    )
    return Page(items, _next(found, key, limit))


def _traces(
    connection: Connection, session: Session, trace_ids: Iterable[str]
) -> dict[str, RowMapping]:
    query = (
        select(traces)
        .join(
            rollouts,
            (rollouts.c.session_id == traces.c.session_id)
            & (rollouts.c.rollout_id == traces.c.rollout_id),
        )
        .where(
            traces.c.trace_id.in_(trace_ids),
            traces.c.session_id == session.session_id,
            rollouts.c.position <= session.rollouts,
        )
    )
    return {row["trace_id"]: row for row in connection.execute(query).mappings()}


def _rows_of(
    session: Session, key: tuple[Column[Any], ...], *, limit: int, cursor: str | None
) -> Select[Any]:
    table = key[0].table
    conditions: list[ColumnElement[Any]] = [table.c.session_id == session.session_id]
    if cursor is not None:
        types = (int if isinstance(column.type, Integer) else str for column in key)
        last = cursors.decode(cursor, *types)
        conditions.append(tuple_(*key) > last)
    return select(table).where(*conditions).order_by(*key).limit(limit)


def _next(rows: Any, key: tuple[Column[Any], ...], limit: int) -> str | None:
    """The cursor of the next page; none after one that is not full."""
    if len(rows) < limit:
        return None
    return cursors.encode(*(rows[-1][column.name] for column in key))


def _is_of_call(frame: RowMapping) -> bool:
    """A reward's frame may name a trace too, which it is not the frame of."""
    kinds = {sensor["kind"] for sensor in frame["sensors"]}
    return bool(frame["trace_ids"]) and SensorKind.REWARD not in kinds


def _call_told(row: RowMapping) -> JsonObject:
    """Without the number of the row, which means nothing elsewhere."""
    told = _told(row)
    del told["position"]
    return told


def _told(row: RowMapping) -> JsonObject:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if name not in _NOT_TOLD
    }
