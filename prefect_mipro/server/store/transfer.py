"""A session as plain JSON, part by part: read for an export, written by an import.

An import takes as many transactions as there are pages. Until the last one the session has a
version that no other session has, so that an import which was broken off can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import AwareDatetime, BaseModel, ValidationError, create_model
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Executable,
    Integer,
    RowMapping,
    Select,
    Table,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite

from prefect_mipro.errors import Conflict, InputInvalid, SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import Part
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.server.store.changes import (
    UNDER_DELETION,
    UNDER_IMPORT,
    Change,
    changing,
    check_session,
    under_deletion,
)
from prefect_mipro.server.store.database import insert_new
from prefect_mipro.server.store.keys import check_workspace
from prefect_mipro.server.store.records import Page, decode_cursor, encode_cursor
from prefect_mipro.server.store.rows import (
    Values,
    candidate_record,
    duel_record,
    event_record,
    lever_record,
    reward_record,
    rollout_record,
    session_record,
    trace_record,
)
from prefect_mipro.server.store.schema import (
    UtcTime,
    candidates,
    duels,
    events,
    example_rewards,
    lever_versions,
    metadata,
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

IMPORTED = "mipro.session.imported"

_TABLES = {part: metadata.tables[key[0].table.name] for part, key in _KEYS.items()}
# Set here, or by the database.
_OURS = frozenset({"session_id", "proxy_secret", "digest_key", "workspace"})
_UNSET = dict.fromkeys(_OURS, "")
_RECORDS: Mapping[Table, Callable[[Values], object]] = {
    sessions: session_record,
    lever_versions: lever_record,
    candidates: candidate_record,
    duels: duel_record,
    rollouts: rollout_record,
    rewards: reward_record,
    traces: trace_record,
    events: event_record,
}


def read_part(
    connection: Connection, session: Session, part: Part, *, limit: int, cursor: str | None = None
) -> Page[JsonObject]:
    """A page of a part's rows as plain JSON, by their key, without the session's secrets.

    Rollouts and traces are limited to the rollouts that `session` counts: later ones may run with
    candidates that were not listed yet.
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
    key = (traces.c.position,)
    told = (rollouts.c.session_id == traces.c.session_id) & (
        rollouts.c.rollout_id == traces.c.rollout_id
    )
    query = _rows_of(session, key, limit=limit, cursor=cursor).join(rollouts, told)
    rows = connection.execute(query.where(rollouts.c.position <= session.rollouts)).mappings().all()
    return Page(tuple(map(_call_told, rows)), _next(rows, key, limit))


def _rows_of(
    session: Session, key: tuple[Column[Any], ...], *, limit: int, cursor: str | None
) -> Select[Any]:
    table = key[0].table
    conditions: list[ColumnElement[Any]] = [table.c.session_id == session.session_id]
    if cursor is not None:
        types = (int if isinstance(column.type, Integer) else str for column in key)
        last = decode_cursor(cursor, *types)
        conditions.append(tuple_(*key) > last)
    return select(table).where(*conditions).order_by(*key).limit(limit)


def _next(rows: Any, key: tuple[Column[Any], ...], limit: int) -> str | None:
    """The cursor of the next page; none after one that is not full."""
    if len(rows) < limit:
        return None
    return encode_cursor(*(rows[-1][column.name] for column in key))


def _call_told(row: RowMapping) -> JsonObject:
    """The row without its number, which means nothing elsewhere."""
    told = _told(row)
    del told["position"]
    return told


def _told(row: RowMapping) -> JsonObject:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if name not in _OURS
    }


def restore(
    connection: Connection,
    session_id: str,
    part: Part,
    rows: Sequence[JsonObject],
    *,
    workspace: str,
    secret: str,
    digest_key: str,
    at: datetime,
) -> None:
    """Insert rows that `parts.read` returned, part by part in order; rows that exist stay.

    Until the last part the session's version is 0. The session is paused, unless it had ended.
    Raises Conflict if the session was here before, or rows are missing at the end; InputInvalid for
    anything that is not a row.
    """
    check_workspace(connection, session_id, workspace)
    if part is Part.SESSION:
        ours = {"workspace": workspace, "proxy_secret": secret, "digest_key": digest_key}
        _begin(connection, session_id, rows, ours)
    elif part is Part.END:
        _finish(connection, session_id, rows, at=at)
    else:
        _check_importing(connection, session_id)
        if part is Part.TRACE:
            _write_calls(connection, session_id, rows)
        else:
            _insert(connection, _TABLES[part], session_id, _values(_TABLES[part], rows))


def _begin(
    connection: Connection, session_id: str, rows: Sequence[JsonObject], ours: Values
) -> None:
    for values in _values(sessions, rows):
        state = SessionState(values["state"])
        values |= {
            **ours,
            "session_id": session_id,
            "state": state if state.final else SessionState.PAUSED,
            "version": UNDER_IMPORT,
        }
        if not insert_new(connection, sessions, values):
            _check_importing(connection, session_id)


def _finish(
    connection: Connection, session_id: str, rows: Sequence[JsonObject], *, at: datetime
) -> None:
    with changing(connection, session_id, under_import=True) as change:
        if change["version"] != UNDER_IMPORT:
            if not _is_imported(change):
                raise _exists(session_id)
            return
        lines: dict[str, int] = rows[-1]["lines"]
        _check_counts(connection, session_id, lines)
        _settle(change)
        change.record(
            IMPORTED,
            f"imported with {lines.get(Part.ROLLOUT, 0)} rollouts; it is {change['state']}",
            data={"lines": lines},
            at=at,
        )


def _settle(change: Change) -> None:
    """Count the rows that came: a server may have removed old ones while it exported."""
    events_here, newest = change.connection.execute(
        select(func.count(), func.coalesce(func.max(events.c.seq), 0)).where(
            events.c.session_id == change.session_id
        )
    ).one()
    rollouts_here = change.connection.scalar(
        select(func.count()).select_from(rollouts).where(rollouts.c.session_id == change.session_id)
    )
    version = max(newest, events_here + change["removed_events"])
    change.set(
        version=version,
        removed_events=version - events_here,
        removed_rollouts=change["rollouts"] - (rollouts_here or 0),
    )


def _check_importing(connection: Connection, session_id: str) -> None:
    version = connection.scalar(
        select(sessions.c.version).where(sessions.c.session_id == session_id)
    )
    if version is None:
        raise SessionNotFound.of(session_id)
    if version == UNDER_DELETION:
        raise under_deletion(session_id)
    if version != UNDER_IMPORT:
        raise _exists(session_id)


def _exists(session_id: str) -> Conflict:
    return Conflict(
        f"session {session_id!r} is here already, and is left as it is; "
        "import it into a backend that does not have it"
    )


def _is_imported(change: Change) -> bool:
    """Whether the import was the last thing that happened to the session."""
    newest = select(events.c.event_type).where(
        events.c.session_id == change.session_id, events.c.seq == change["version"]
    )
    return change.connection.scalar(newest) == IMPORTED


def _check_counts(connection: Connection, session_id: str, lines: Mapping[str, int]) -> None:
    """Raise Conflict unless all rows are there."""
    for part, table in {**_TABLES, Part.TRACE: traces}.items():
        query = select(func.count()).select_from(table).where(table.c.session_id == session_id)
        found = connection.scalar(query) or 0
        # More may be: rollouts that began meanwhile.
        if found < lines.get(part, 0):
            raise Conflict(
                f"of the {lines.get(part, 0)} lines of {part} {found} are here; import the whole "
                "file, and into a backend where no other session has its ids"
            )


def _write_calls(connection: Connection, session_id: str, rows: Sequence[JsonObject]) -> None:
    """Traces that are new here, in the order in which they were told."""
    told = [row.get("trace_id") for row in rows]
    known = set(connection.scalars(select(traces.c.trace_id).where(traces.c.trace_id.in_(told))))
    new = [row for row in rows if row.get("trace_id") not in known]
    if new:
        _insert(connection, traces, session_id, _values(traces, new))


def _insert(connection: Connection, table: Table, session_id: str, rows: Iterable[Values]) -> None:
    """Rows whose key is there already are left as they are."""
    values = [{**row, "session_id": session_id} for row in rows]
    if values:
        connection.execute(_insertion(connection.dialect.name, table), values)


@cache
def _insertion(dialect: str, table: Table) -> Executable:
    made = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    return made.on_conflict_do_nothing()


def _values(table: Table, rows: Iterable[JsonObject]) -> list[Values]:
    """The rows as the table takes them, and as they can be read again. Raises InputInvalid."""
    model = _row_of(table)
    read = _RECORDS.get(table)
    values: list[Values] = []
    for row in rows:
        try:
            values.append(model.model_validate(row).model_dump())
            if read:
                read({**_UNSET, **values[-1]})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the row"
            raise InputInvalid(
                f"a line of the import is no row of {table.name}: {field}: {problem['msg']}"
            ) from None
        except KeyError as error:
            raise InputInvalid(f"a line of the import has the unknown word {error}") from None
    return values


@cache
def _row_of(table: Table) -> type[BaseModel]:
    """A row's fields, with the defaults of columns that older exports did not have."""
    fields: dict[str, Any] = {
        column.name: _field(column) for column in table.columns if _is_told(column)
    }
    return create_model(f"row of {table.name}", **fields)


def _is_told(column: Column[Any]) -> bool:
    numbers_rows = column.name == "position" and column.primary_key
    return column.name not in _OURS and not numbers_rows


def _field(column: Column[Any]) -> tuple[Any, Any]:
    kind = _kind(column)
    if column.nullable:
        return (kind | None if kind is not Any else Any, None)
    if column.default is not None:
        return (kind, column.default.arg)  # type: ignore[attr-defined]
    return (kind, ...)


def _kind(column: Column[Any]) -> Any:
    match column.type:
        case JSON():
            return Any
        case UtcTime():
            return AwareDatetime
        case Boolean():
            return bool
        case Integer():
            return int
        case Double():
            return float
        case _:
            return str
