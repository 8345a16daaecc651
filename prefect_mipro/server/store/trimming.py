"""Rows that have been kept long enough: a session's old rollouts, calls and events, removed.

What was counted of them stays counted, for the session, its candidates, duels, blocks and examples:
beliefs do not change. Of each rollout its id is kept, so that no reward counts twice.

No index is needed for it. Rewarded rollouts go in the order of their rewards, others in the order
of their pins, calls and events as they came; each order is that of an index. Of the first ones in
that order the old ones go, and where none of them is old, none is looked for behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from prefect_mipro.server.store.changes import Change, changing, present
from prefect_mipro.server.store.deletion import delete_calls, first_calls, named
from prefect_mipro.server.store.failures import evidence_begins
from prefect_mipro.server.store.missing import count_missing
from prefect_mipro.server.store.records import Removed
from prefect_mipro.server.store.tables import (
    duels,
    events,
    removed_rollouts,
    rewarded,
    rewards,
    rollouts,
    sessions,
    unrewarded,
    waiting,
)

ROLLOUT_COLUMNS = (
    rollouts.c.rollout_id,
    rollouts.c.candidate_id,
    rollouts.c.pinned_at,
    rollouts.c.reward_number,
    rollouts.c.given_up_at,
    rollouts.c.applied,
)


def session_ids(connection: Connection) -> tuple[str, ...]:
    """The ids of all sessions."""
    return tuple(connection.scalars(select(sessions.c.session_id).where(present)))


def remove_old(
    connection: Connection, session_id: str, *, before: datetime, limit: int, at: datetime
) -> Removed:
    """Remove at most `limit` rows of one kind from before `before`; no rows when none is left.

    Rollouts go with their rewards, then calls with their frames, rewards that still wait for their
    rollouts, and events. The rollouts of the newest duel stay. All counters stay as they are,
    except that rollouts whose rewards were awaited now count as missing.
    """
    with changing(connection, session_id) as change:
        removed = _remove_rollouts(change, before=before, limit=limit, at=at)
        if removed:
            return Removed(len(removed), change["baseline_id"], removed)
        return Removed(
            _remove_calls(change, before=before, limit=limit)
            or _remove_waiting_rewards(change, before=before, limit=limit)
            or _remove_events(change, before=before, limit=limit)
        )


def _remove_rollouts(
    change: Change, *, before: datetime, limit: int, at: datetime
) -> tuple[str, ...]:
    """Remove old rollouts with their rewards; those whose rewards are awaited are given up first.

    The newest duel keeps its rollouts, and so do failures that candidates are judged by: they are
    evidence, which nothing else holds.
    """
    found = _old_rollouts(change, before=before, limit=limit)
    if not found:
        return ()
    return remove_found(change, found, at=at)


def remove_found(change: Change, found: Sequence[Row[Any]], *, at: datetime) -> tuple[str, ...]:
    """Remove rollouts with their rewards; `found` has their `ROLLOUT_COLUMNS`. Their ids."""
    if awaited := [
        (row.candidate_id, row.applied)
        for row in found
        if row.reward_number is None and row.given_up_at is None
    ]:
        count_missing(change, awaited, at=at)
    removed = tuple(row.rollout_id for row in found)
    _keep_ids(change, found)
    for table in (rewards, rollouts):
        change.connection.execute(
            delete(table).where(
                table.c.session_id == change.session_id, table.c.rollout_id.in_(removed)
            )
        )
    change.set(removed_rollouts=change["removed_rollouts"] + len(removed))
    return removed


def _old_rollouts(change: Change, *, before: datetime, limit: int) -> list[Row[Any]]:
    newest_duel = select(func.max(duels.c.number)).where(duels.c.session_id == change.session_id)
    number = change.connection.scalar(newest_duel)
    mine = (
        select(*ROLLOUT_COLUMNS)
        .where(
            rollouts.c.session_id == change.session_id,
            or_(rollouts.c.failure.is_(None), rollouts.c.position < evidence_begins(change)),
        )
        .limit(limit)
    )
    if number is not None:
        mine = mine.where(or_(rollouts.c.duel_number.is_(None), rollouts.c.duel_number != number))

    def old(query: Select[Any]) -> list[Row[Any]]:
        return [row for row in change.connection.execute(query) if row.pinned_at < before]

    return old(mine.where(rewarded).order_by(rollouts.c.reward_number)) or old(
        mine.where(unrewarded).order_by(rollouts.c.position)
    )


def _keep_ids(change: Change, found: Sequence[Row[Any]]) -> None:
    postgres = change.connection.dialect.name == "postgresql"
    insert = (postgresql if postgres else sqlite).insert(removed_rollouts)
    # An id may have been given to another rollout since.
    kept = func.coalesce(insert.excluded.candidate_id, removed_rollouts.c.candidate_id)
    change.connection.execute(
        insert.on_conflict_do_update(
            index_elements=removed_rollouts.primary_key.columns, set_={"candidate_id": kept}
        ),
        [
            {
                "session_id": change.session_id,
                "rollout_id": row.rollout_id,
                "candidate_id": None if row.reward_number is None else row.candidate_id,
            }
            for row in found
        ],
    )


def _remove_calls(change: Change, *, before: datetime, limit: int) -> int:
    first = first_calls(change.connection, change.session_id, limit)
    old = [frame for frame in first if frame.created_at < before]
    if old:
        # Rollouts that stay have nothing left to learn from.
        change.connection.execute(
            update(rollouts)
            .where(
                rollouts.c.session_id == change.session_id,
                rollouts.c.rollout_id.in_({frame.rollout_id for frame in old}),
                rollouts.c.example_trace_id.in_(named(old)),
            )
            .values(example_trace_id=null())
        )
    return delete_calls(change.connection, old, change.session_id)


def _remove_waiting_rewards(change: Change, *, before: datetime, limit: int) -> int:
    old = (
        select(rewards.c.reward_id)
        .where(rewards.c.session_id == change.session_id, waiting, rewards.c.received_at < before)
        .order_by(rewards.c.received_at)
        .limit(limit)
    )
    return change.connection.execute(delete(rewards).where(rewards.c.reward_id.in_(old))).rowcount


def _remove_events(change: Change, *, before: datetime, limit: int) -> int:
    mine = events.c.session_id == change.session_id
    first = (
        select(events.c.seq, events.c.created_at).where(mine).order_by(events.c.seq).limit(limit)
    )
    old = [event.seq for event in change.connection.execute(first) if event.created_at < before]
    if old:
        change.connection.execute(delete(events).where(mine, events.c.seq.in_(old)))
        change.set(removed_events=change["removed_events"] + len(old))
    return len(old)
