"""Texts that have been kept long enough: emptied where they stand, in pieces of some rows.

No index is needed for it. Calls and frames are numbered as they come, so that the old ones are the
first ones; rewards are gone through in the order of their keys.
"""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Text,
    case,
    cast,
    null,
    or_,
    select,
    tuple_,
    update,
)

from prefect_mipro.server.store import cursors
from prefect_mipro.server.store.records import Swept, Texts
from prefect_mipro.server.store.tables import frames, rewards, rollouts, traces

# In the place of what went wrong with a call: that it did stays to be seen.
FORGOTTEN = "forgotten"

_TRACE_HAS_TEXT = or_(
    cast(traces.c.messages, Text) != "[]",
    traces.c.response.is_not(None),
    traces.c.input != "",
    traces.c.output != "",
    *(column.not_in(("", FORGOTTEN)) for column in (traces.c.error, traces.c.unapplied_reason)),
)
_SAID = ("error", "reason")
_FRAME_HAS_TEXT = or_(*(cast(frames.c.sensors, Text).contains(f'"{word}"') for word in _SAID))
_OF_REWARDS = (
    rewards.c.feedback,
    rewards.c.expected,
    rewards.c.artifact,
    rewards.c.metadata,
)


def forget(
    connection: Connection,
    texts: Texts,
    *,
    before: datetime,
    limit: int,
    cursor: str | None = None,
) -> Swept:
    """Empty the texts of older rows among the next `limit` after the cursor.

    Calls and frames are read in the order in which they came, up to the first that is not old.
    Numbers stay, and so does whether a call failed.
    """
    if texts is Texts.REWARDS:
        return _of_rewards(connection, before=before, limit=limit, cursor=cursor)
    table = traces if texts is Texts.TRACES else frames
    (first,) = cursors.decode(cursor, int) if cursor else (0,)
    rows = connection.execute(
        select(table.c.position, table.c.created_at)
        .where(table.c.position > first)
        .order_by(table.c.position)
        .limit(limit)
    ).all()
    old = [row.position for row in takewhile(lambda row: row.created_at < before, rows)]
    if not old:
        return Swept(0, None)
    piece = table.c.position.between(first + 1, old[-1])
    forget_piece = _of_traces if table is traces else _of_frames
    swept = forget_piece(connection, piece)
    return Swept(swept, cursors.encode(old[-1]) if len(old) == limit else None)


def _of_traces(connection: Connection, piece: ColumnElement[bool]) -> int:
    forgotten = (
        update(traces)
        .where(piece, _TRACE_HAS_TEXT)
        .values(
            messages=[],
            response=null(),
            input="",
            output="",
            error=_forgotten(traces.c.error),
            unapplied_reason=_forgotten(traces.c.unapplied_reason),
        )
    )
    swept = connection.execute(forgotten).rowcount
    if swept:
        # Nothing is left in them to learn from.
        of_piece = select(traces.c.session_id, traces.c.rollout_id).where(piece)
        connection.execute(
            update(rollouts)
            .where(
                tuple_(rollouts.c.session_id, rollouts.c.rollout_id).in_(of_piece),
                rollouts.c.example_trace_id.is_not(None),
            )
            .values(example_trace_id=None)
        )
    return swept


def _forgotten(column: Column[str]) -> ColumnElement[str]:
    return case((column != "", FORGOTTEN), else_="")


def _of_frames(connection: Connection, piece: ColumnElement[bool]) -> int:
    found = select(frames.c.position, frames.c.sensors).where(piece, _FRAME_HAS_TEXT)
    rows = connection.execute(found).all()
    for row in rows:
        sensors = [
            {
                **sensor,
                "metadata": {
                    name: value for name, value in sensor["metadata"].items() if name not in _SAID
                },
            }
            for sensor in row.sensors
        ]
        connection.execute(
            update(frames).where(frames.c.position == row.position).values(sensors=sensors)
        )
    return len(rows)


def _of_rewards(
    connection: Connection, *, before: datetime, limit: int, cursor: str | None
) -> Swept:
    (first,) = cursors.decode(cursor, str) if cursor else ("",)
    keys = connection.scalars(
        select(rewards.c.reward_id)
        .where(rewards.c.reward_id > first)
        .order_by(rewards.c.reward_id)
        .limit(limit)
    ).all()
    if not keys:
        return Swept(0, None)
    forgotten = (
        update(rewards)
        .where(
            rewards.c.reward_id > first,
            rewards.c.reward_id <= keys[-1],
            rewards.c.received_at < before,
            or_(*(column.is_not(None) for column in _OF_REWARDS)),
        )
        .values({column: null() for column in _OF_REWARDS})
    )
    swept = connection.execute(forgotten).rowcount
    return Swept(swept, cursors.encode(keys[-1]) if len(keys) == limit else None)
