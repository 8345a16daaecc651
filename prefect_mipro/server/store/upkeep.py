"""Upkeep: old texts are emptied, old rows removed, free space given back.

Removed rollouts, calls and events stay counted for the session, its candidates, duels, blocks and
examples: beliefs do not change. Of each rollout its id is kept, so that no reward counts twice.

No index is needed for it. Calls are numbered as they come, so that the old ones are the first ones;
rewards are read in the order of their keys. Rewarded rollouts go in the order of their rewards,
other rollouts in the order of their pins; where the first ones in that order are not old, none
behind them is looked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Text,
    bindparam,
    case,
    cast,
    delete,
    func,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from prefect_mipro.models.levers import DemonstrationSource, LeverName
from prefect_mipro.server.store.changes import Change, changing
from prefect_mipro.server.store.database import driver_of
from prefect_mipro.server.store.failures import count_missing, evidence_begins
from prefect_mipro.server.store.records import Removed, Swept, Texts, decode_cursor, encode_cursor
from prefect_mipro.server.store.schema import (
    VERSION_TABLE,
    duels,
    events,
    lever_versions,
    removed_rollouts,
    rewarded,
    rewards,
    rollouts,
    traces,
    unrewarded,
    waiting,
)

# In the place of what went wrong with a call: that it did stays to be seen.
FORGOTTEN = "forgotten"

_TRACE_HAS_TEXT = or_(
    cast(traces.c.messages, Text) != "[]",
    traces.c.response.is_not(None),
    traces.c.input != "",
    traces.c.output != "",
    *(column.not_in(("", FORGOTTEN)) for column in (traces.c.error, traces.c.unapplied_reason)),
)
_OF_REWARDS = (
    rewards.c.feedback,
    rewards.c.expected,
    rewards.c.artifact,
    rewards.c.metadata,
)

# What `remove_found` needs to know of a rollout.
ROLLOUT_COLUMNS = (
    rollouts.c.rollout_id,
    rollouts.c.candidate_id,
    rollouts.c.pinned_at,
    rollouts.c.reward_number,
    rollouts.c.given_up_at,
    rollouts.c.applied,
)
_SESSION = bindparam("of_session", type_=Text)
_CALLS = (
    select(
        traces.c.position,
        traces.c.trace_id,
        traces.c.rollout_id,
        traces.c.candidate_id,
        traces.c.created_at,
    )
    .where(
        traces.c.session_id == _SESSION,
        traces.c.position > bindparam("of_position", type_=BigInteger),
    )
    .order_by(traces.c.position)
)

# Where demonstrations come from that the caller has not marked as safe to show.
_UNMARKED = (DemonstrationSource.TRAFFIC, DemonstrationSource.REVIEWED)

# More than any pin needs, and less than anything that is worth counting.
PROBE_BYTES = 64 * 2**10

# New rows take free pages first, so that a file which gave all of them back would grow again.
FREE_PAGES_KEPT = 1_024
PAGES_AT_ONCE = 256

_UPDATE = text(f"UPDATE {VERSION_TABLE} SET version_num = version_num")
_INSERT = text(f"INSERT INTO {VERSION_TABLE} VALUES (:probe)")
_DELETE = text(f"DELETE FROM {VERSION_TABLE} WHERE version_num = :probe")


def unmarked_demonstrations(
    connection: Connection, session_id: str, *, before: datetime
) -> frozenset[tuple[LeverName, int]]:
    """The sets from before `before` that show calls which the caller did not mark as shareable."""
    value = lever_versions.c.value
    query = select(lever_versions.c.version, value).where(
        lever_versions.c.session_id == session_id,
        lever_versions.c.lever == LeverName.DEMONSTRATIONS,
        lever_versions.c.created_at < before,
        # A marked one may say the same word, so that what is found is read below.
        or_(*(cast(value, Text).contains(f'"{source}"') for source in _UNMARKED)),
    )
    return frozenset(
        (LeverName.DEMONSTRATIONS, row.version)
        for row in connection.execute(query)
        if any(shown.get("source") in _UNMARKED for shown in row.value["demonstrations"])
    )


def forget_texts(
    connection: Connection,
    texts: Texts,
    *,
    before: datetime,
    limit: int,
    cursor: str | None = None,
) -> Swept:
    """Empty the texts of older rows among the next `limit` after the cursor.

    Calls are read in the order in which they came, up to the first that is not old.
    Numbers stay, and so does whether a call failed.
    """
    if texts is Texts.REWARDS:
        return _of_rewards(connection, before=before, limit=limit, cursor=cursor)
    (first,) = decode_cursor(cursor, int) if cursor else (0,)
    rows = connection.execute(
        select(traces.c.position, traces.c.created_at)
        .where(traces.c.position > first)
        .order_by(traces.c.position)
        .limit(limit)
    ).all()
    old = [row.position for row in takewhile(lambda row: row.created_at < before, rows)]
    if not old:
        return Swept(0, None)
    swept = _of_traces(connection, traces.c.position.between(first + 1, old[-1]))
    return Swept(swept, encode_cursor(old[-1]) if len(old) == limit else None)


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


def _of_rewards(
    connection: Connection, *, before: datetime, limit: int, cursor: str | None
) -> Swept:
    (first,) = decode_cursor(cursor, str) if cursor else ("",)
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
    return Swept(swept, encode_cursor(keys[-1]) if len(keys) == limit else None)


def remove_old(
    connection: Connection, session_id: str, *, before: datetime, limit: int, at: datetime
) -> Removed:
    """Remove at most `limit` rows of one kind from before `before`; no rows when none is left.

    Rollouts go with their rewards, then calls, rewards that still wait for their rollouts, and
    events. The rollouts of the newest duel stay. All counters stay as they are,
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
    """Remove rollouts with their rewards, given their `ROLLOUT_COLUMNS`. Returns their ids."""
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
    old = [call for call in first if call.created_at < before]
    if old:
        # Rollouts that stay have nothing left to learn from.
        change.connection.execute(
            update(rollouts)
            .where(
                rollouts.c.session_id == change.session_id,
                rollouts.c.rollout_id.in_({call.rollout_id for call in old}),
                rollouts.c.example_trace_id.in_([call.trace_id for call in old]),
            )
            .values(example_trace_id=null())
        )
    return delete_calls(change.connection, old)


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


def first_calls(
    connection: Connection, session_id: str, limit: int, *, after: int = 0
) -> Sequence[Row[Any]]:
    """The session's first calls after a position, without their texts."""
    of = {"of_session": session_id, "of_position": after}
    return connection.execute(_CALLS.limit(limit), of).all()


def delete_calls(connection: Connection, found: Sequence[Row[Any]]) -> int:
    """Delete these calls. Returns how many."""
    if found:
        positions = [call.position for call in found]
        connection.execute(delete(traces).where(traces.c.position.in_(positions)))
    return len(found)


def require_writable(connection: Connection) -> None:
    """Change nothing, by a transaction that has to be written. Raises StoreFailed without room.

    In SQLite it must find free pages, too: one that may not grow still takes small changes.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_UPDATE)
        return
    probe = {"probe": "probe".ljust(PROBE_BYTES)}
    connection.execute(_INSERT, probe)
    connection.execute(_DELETE, probe)


def give_back_space(connection: Connection) -> int:
    """Give some free pages of an SQLite file back to its disk. Returns how many.

    PostgreSQL's autovacuum does the same. Files that were made without `auto_vacuum` give nothing
    back before they are compacted.
    """
    if connection.dialect.name == "postgresql":
        return 0
    driver = driver_of(connection)
    free = _free_pages(driver)
    pages = min(free - FREE_PAGES_KEPT, PAGES_AT_ONCE)
    if pages <= 0:
        return 0
    driver.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    return free - _free_pages(driver)


def _free_pages(driver: sqlite3.Connection) -> int:
    (pages,) = driver.execute("PRAGMA freelist_count").fetchone()
    return int(pages)
