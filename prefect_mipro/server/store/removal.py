"""Removal on request: a session deleted, or one subject of it forgotten.

A deletion goes piece by piece through what a session has many rows of, then takes the rest at once.
From its beginning on the session is not found, however long it takes and whatever breaks it off.

A request to forget removes rollouts, calls and events and empties levers. It is kept as an order
until it has been carried out, so that one which was broken off is resumed. Each function is one
short transaction. Rows are read by their keys, a page at a time: nothing but a request to forget
looks for them by their subject, which needs no index.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Text,
    bindparam,
    cast,
    delete,
    insert,
    or_,
    select,
    true,
    update,
)

from prefect_mipro.errors import SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.levers import FORGOTTEN, LeverName, LeverProvenance
from prefect_mipro.models.sessions import ForgetSubject
from prefect_mipro.server.store.candidates import VERSION_OF_LEVER, withdraw_from
from prefect_mipro.server.store.changes import UNDER_DELETION, changing, check_session, present
from prefect_mipro.server.store.records import (
    CallTexts,
    ForgetOrder,
    Page,
    TraceableReward,
    Withdrawal,
    decode_cursor,
    encode_cursor,
)
from prefect_mipro.server.store.rows import example_key
from prefect_mipro.server.store.schema import (
    candidates,
    duels,
    events,
    example_rewards,
    forget_requests,
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
    waiting,
)
from prefect_mipro.server.store.upkeep import (
    ROLLOUT_COLUMNS,
    delete_calls,
    first_calls,
    remove_found,
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
# Whose rows grow with the traffic, beside the calls.
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

FORGOTTEN_EVENT = "mipro.session.forgotten"

_EMPTY: dict[LeverName, JsonObject] = {
    LeverName.INSTRUCTION: {"text": ""},
    LeverName.DEMONSTRATIONS: {"demonstrations": []},
}
_OF_REWARD = (
    rewards.c.correlation_id.label("reward_correlation_id"),
    rewards.c.example_id.label("reward_example_id"),
    rewards.c.metadata,
    rewards.c.expected,
    rewards.c.feedback,
)
# The parts of a cursor over rollouts, then over rewards without one.
_ROLLOUTS, _WAITING = "rollouts", "waiting"


def begin_deletion(connection: Connection, session_id: str) -> None:
    """Hide the session, in any state, from everything but its deletion. Raises SessionNotFound."""
    hidden = update(sessions).where(sessions.c.session_id == session_id, present)
    if not connection.execute(hidden.values(version=UNDER_DELETION)).rowcount:
        raise SessionNotFound.of(session_id)


def begun_deletions(connection: Connection) -> tuple[str, ...]:
    """The ids of sessions whose deletion has begun and not ended."""
    return tuple(connection.scalars(select(sessions.c.session_id).where(~present)))


def thin(connection: Connection, session_id: str, *, limit: int) -> int:
    """Delete at most `limit` of a session's calls, events, rewards and older rollouts.

    Returns how many were deleted. Counters stay: the session is about to be deleted as a whole.
    """
    # Of the first kind of row that it has any of.
    deleted = delete_calls(connection, first_calls(connection, session_id, limit))
    for key, condition in _GROWING:
        deleted = deleted or _delete_some(connection, key, condition, session_id, limit=limit)
    return deleted


def delete_session(connection: Connection, session_id: str) -> None:
    """Delete the session and all that is left of it. Its id is free again."""
    of = {"of_session": session_id}
    if connection.scalar(_LOCK, of) is None:
        raise SessionNotFound.of(session_id)
    while thin(connection, session_id, limit=PIECE):
        pass
    for table in _REST:
        connection.execute(delete(table).where(table.c.session_id == _SESSION), of)


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


def begin_forgetting(connection: Connection, order: ForgetOrder) -> None:
    """Keep the order until it has been carried out. Raises SessionNotFound."""
    with changing(connection, order.session_id):
        connection.execute(insert(forget_requests), vars(order))


def begun_forgettings(connection: Connection) -> tuple[ForgetOrder, ...]:
    """The orders that have not been carried out to their end, oldest first."""
    query = select(forget_requests).order_by(forget_requests.c.requested_at)
    return tuple(_order(row) for row in connection.execute(query))


def forgotten_since(connection: Connection, session_id: str, since: datetime) -> bool:
    """Whether a request to forget is under way in the session, or has ended since."""
    under_way = select(forget_requests.c.request_id).where(
        forget_requests.c.session_id == session_id
    )
    ended = select(events.c.seq).where(
        events.c.session_id == session_id,
        events.c.event_type == FORGOTTEN_EVENT,
        events.c.created_at >= since,
    )
    return any(connection.execute(query.limit(1)).first() for query in (under_way, ended))


def traceable(
    connection: Connection, session_id: str, *, limit: int, cursor: str | None = None
) -> Page[TraceableReward]:
    """A session's rollouts with their rewards, then the rewards that wait for a rollout.

    A page may be empty and have another one after it.
    """
    part, after = decode_cursor(cursor, str, str) if cursor else (_ROLLOUTS, "")
    if part == _WAITING:
        return _waiting(connection, session_id, limit=limit, after=after)
    query = (
        select(rollouts.c.rollout_id, rollouts.c.correlation_id, rollouts.c.example_id, *_OF_REWARD)
        .join_from(
            rollouts,
            rewards,
            (rewards.c.session_id == rollouts.c.session_id)
            & (rewards.c.rollout_id == rollouts.c.rollout_id),
            isouter=True,
        )
        .where(rollouts.c.session_id == session_id, rollouts.c.rollout_id > after)
        .order_by(rollouts.c.rollout_id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    if not rows:
        check_session(connection, session_id)
    items = tuple(
        _traceable(row, row.correlation_id, row.example_id, is_pinned=True) for row in rows
    )
    following = (_ROLLOUTS, rows[-1].rollout_id) if len(rows) == limit else (_WAITING, "")
    return Page(items, encode_cursor(*following))


def call_texts(
    connection: Connection,
    session_id: str,
    rollout_ids: Collection[str],
    *,
    limit: int,
    cursor: str | None,
) -> Page[CallTexts]:
    """The calls of these rollouts among the next `limit` calls of the session."""
    found = _next_calls(connection, session_id, limit=limit, cursor=cursor)
    going = [call.position for call in found if call.rollout_id in rollout_ids]
    query = select(traces.c.trace_id, traces.c.input, traces.c.output).where(
        traces.c.position.in_(going)
    )
    rows = connection.execute(query).all() if going else []
    return Page(tuple(CallTexts(*row) for row in rows), _next(found, limit))


def empty_levers(
    connection: Connection,
    session_id: str,
    versions: Collection[tuple[LeverName, int]],
    *,
    at: datetime,
    reason: str,
) -> Withdrawal:
    """Empty lever versions for good, and withdraw the candidates that are made of them."""
    with changing(connection, session_id) as change:
        made_of_them = _made_of(connection, session_id, versions)
        withdrawal = withdraw_from(change, made_of_them, at=at, reason=reason)
        provenance = LeverProvenance(operator=FORGOTTEN, reason=reason).model_dump(mode="json")
        for lever, version in sorted(versions):
            connection.execute(
                update(lever_versions)
                .where(
                    lever_versions.c.session_id == session_id,
                    lever_versions.c.lever == lever,
                    lever_versions.c.version == version,
                )
                .values(value=_EMPTY[lever], provenance=provenance)
            )
        return withdrawal


def remove_rollouts(
    connection: Connection, order: ForgetOrder, rollout_ids: Collection[str], *, at: datetime
) -> int:
    """Remove these rollouts and their rewards, and count the rollouts for the order.

    Counters stay as they are, as in `remove_old`. Returns how many rollouts were removed.
    """
    mine = rollouts.c.session_id == order.session_id
    query = select(*ROLLOUT_COLUMNS).where(mine, rollouts.c.rollout_id.in_(rollout_ids))
    with changing(connection, order.session_id) as change:
        found = connection.execute(query).all()
        if found:
            remove_found(change, found, at=at)
        connection.execute(
            delete(rewards).where(
                rewards.c.session_id == order.session_id, rewards.c.rollout_id.in_(rollout_ids)
            )
        )
        _count(connection, order, rollouts=len(found))
    return len(found)


def remove_calls(
    connection: Connection,
    order: ForgetOrder,
    rollout_ids: Collection[str],
    emptied: Collection[tuple[LeverName, int]],
    *,
    limit: int,
    cursor: str | None,
) -> str | None:
    """Remove the calls of these or of removed rollouts among the next `limit` calls.

    Other calls lose the messages that were sent, if those contained one of the `emptied` lever
    versions. Returns the cursor of the next calls; `None` after the last.
    """
    session_id = order.session_id
    found = _next_calls(connection, session_id, limit=limit, cursor=cursor)
    going_ids = _going(connection, session_id, {row.rollout_id for row in found}, rollout_ids)
    going = [call for call in found if call.rollout_id in going_ids]
    if going:
        _count(connection, order, calls=delete_calls(connection, going))
    made_of_them = _made_of(connection, session_id, emptied)
    if served := [call.position for call in found if call.candidate_id in made_of_them]:
        connection.execute(
            update(traces)
            .where(traces.c.position.in_(served), cast(traces.c.messages, Text) != "[]")
            .values(messages=[])
        )
    return _next(found, limit)


def remove_events(
    connection: Connection,
    session_id: str,
    rollout_ids: Collection[str],
    *,
    limit: int,
    cursor: str | None,
) -> str | None:
    """Remove the events about these or removed rollouts among the next `limit` events.

    Returns the cursor of the next events; `None` after the last.
    """
    (after,) = decode_cursor(cursor, int) if cursor else (0,)
    mine = events.c.session_id == session_id
    query = (
        select(events.c.seq, events.c.data)
        .where(mine, events.c.seq > after)
        .order_by(events.c.seq)
        .limit(limit)
    )
    with changing(connection, session_id) as change:
        found = connection.execute(query).all()
        about = {row.seq: row.data.get("rollout_id") for row in found}
        named = {str(rollout_id) for rollout_id in about.values() if rollout_id}
        going_ids = _going(connection, session_id, named, rollout_ids)
        going = [seq for seq, rollout_id in about.items() if rollout_id in going_ids]
        if going:
            connection.execute(delete(events).where(mine, events.c.seq.in_(going)))
            change.set(removed_events=change["removed_events"] + len(going))
    return encode_cursor(found[-1].seq) if len(found) == limit else None


def end_forgetting(
    connection: Connection, order: ForgetOrder, *, data: JsonObject, at: datetime
) -> ForgetOrder | None:
    """Delete the order, and record what it did as an event; `None` if another server was first."""
    with changing(connection, order.session_id) as change:
        mine = forget_requests.c.request_id == order.request_id
        row = connection.execute(select(forget_requests).where(mine)).first()
        if row is None:
            return None
        connection.execute(delete(forget_requests).where(mine))
        if order.subject is ForgetSubject.EXAMPLE_ID:
            connection.execute(
                delete(example_rewards).where(
                    example_rewards.c.session_id == order.session_id,
                    example_rewards.c.example_key == example_key(order.value),
                )
            )
        ended = _order(row)
        change.record(
            FORGOTTEN_EVENT,
            f"{ended.rollouts} rollouts and {ended.calls} calls of one {order.subject} are "
            "forgotten",
            data={
                "subject": order.subject,
                "rollouts": ended.rollouts,
                "calls": ended.calls,
                **data,
            },
            at=at,
        )
        return ended


def _order(row: Row[Any]) -> ForgetOrder:
    values = row._asdict()
    return ForgetOrder(**{**values, "subject": ForgetSubject(values["subject"])})


def _waiting(
    connection: Connection, session_id: str, *, limit: int, after: str
) -> Page[TraceableReward]:
    query = (
        select(rewards.c.rollout_id, *_OF_REWARD)
        .where(rewards.c.session_id == session_id, waiting, rewards.c.rollout_id > after)
        .order_by(rewards.c.rollout_id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    items = tuple(_traceable(row, None, None, is_pinned=False) for row in rows)
    more = len(rows) == limit
    return Page(items, encode_cursor(_WAITING, rows[-1].rollout_id) if more else None)


def _traceable(
    row: Row[Any], correlation_id: str | None, example_id: str | None, *, is_pinned: bool
) -> TraceableReward:
    return TraceableReward(
        row.rollout_id,
        is_pinned,
        (correlation_id, row.reward_correlation_id),
        (example_id, row.reward_example_id),
        row.metadata,
        row.expected,
        row.feedback,
    )


def _made_of(
    connection: Connection, session_id: str, versions: Collection[tuple[LeverName, int]]
) -> set[str]:
    """The candidates that are made of any of the lever versions."""
    if not versions:
        return set()
    holding = or_(
        *(candidates.c[VERSION_OF_LEVER[lever]] == version for lever, version in versions)
    )
    query = select(candidates.c.candidate_id).where(candidates.c.session_id == session_id, holding)
    return set(connection.scalars(query))


def _next_calls(
    connection: Connection, session_id: str, *, limit: int, cursor: str | None
) -> Sequence[Row[Any]]:
    (after,) = decode_cursor(cursor, int) if cursor else (0,)
    return first_calls(connection, session_id, limit, after=after)


def _next(found: Sequence[Row[Any]], limit: int) -> str | None:
    return encode_cursor(found[-1].position) if len(found) == limit else None


def _going(
    connection: Connection, session_id: str, named: set[str], rollout_ids: Collection[str]
) -> set[str]:
    """The named rollouts that are among the ids or were removed."""
    if not named:
        return set()
    removed = connection.scalars(
        select(removed_rollouts.c.rollout_id)
        .join(
            rollouts,
            (rollouts.c.session_id == removed_rollouts.c.session_id)
            & (rollouts.c.rollout_id == removed_rollouts.c.rollout_id),
            isouter=True,
        )
        .where(
            removed_rollouts.c.session_id == session_id,
            removed_rollouts.c.rollout_id.in_(named),
            # Its id may have been given to another rollout since.
            rollouts.c.rollout_id.is_(None),
        )
    )
    return {rollout_id for rollout_id in named if rollout_id in rollout_ids} | set(removed)


def _count(
    connection: Connection, order: ForgetOrder, *, rollouts: int = 0, calls: int = 0
) -> None:
    connection.execute(
        update(forget_requests)
        .where(forget_requests.c.request_id == order.request_id)
        .values(
            rollouts=forget_requests.c.rollouts + rollouts, calls=forget_requests.c.calls + calls
        )
    )
