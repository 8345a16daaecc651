"""Sessions: creating, listing and changing them, their events, totals over all of them, and turns.

A turn says which of the servers that share a database proposes for a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite

from prefect_mipro.errors import SessionEnded, SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.levers import LeverVersion
from prefect_mipro.models.sessions import Event, Session, SessionState
from prefect_mipro.server.store import duels
from prefect_mipro.server.store.blocks import blocks_of, end_epoch
from prefect_mipro.server.store.candidates import (
    candidates_of,
    check_not_forgotten,
    count_active,
    totals,
    withdrawn_ids,
)
from prefect_mipro.server.store.changes import (
    Change,
    changing,
    check_candidates,
    check_session,
    present,
    read_session,
    under_deletion,
)
from prefect_mipro.server.store.database import insert_new
from prefect_mipro.server.store.failures import newest_failures
from prefect_mipro.server.store.keys import check_workspace
from prefect_mipro.server.store.records import (
    LearningFacts,
    Overview,
    Page,
    SessionFilter,
    Standing,
    StateTotals,
    decode_cursor,
    encode_cursor,
)
from prefect_mipro.server.store.rows import (
    candidate_values,
    event_record,
    lever_values,
    session_record,
    session_values,
)
from prefect_mipro.server.store.schema import (
    active,
    candidates,
    events,
    lever_versions,
    microseconds,
    proposers,
    retired,
    sessions,
)

_SUMMED = ("rollouts", "rewards", "missing", "promotions")
_BY_STATE = (
    select(
        sessions.c.state,
        func.count().label("sessions"),
        *(func.sum(sessions.c[name]).label(name) for name in _SUMMED),
    )
    .where(present)
    .group_by(sessions.c.state)
)
# Each condition is that of a partial index, so that no row is read.
_CANDIDATES = select(
    select(func.count()).select_from(candidates).where(active).scalar_subquery().label("active"),
    select(func.count()).select_from(candidates).where(retired).scalar_subquery().label("retired"),
)


def create(
    connection: Connection, session: Session, levers: Sequence[LeverVersion], baseline: Candidate
) -> tuple[Session, bool]:
    """Insert a session with its levers and baseline; whether it was inserted.

    A session that has the id already is returned as it stands, with `False`. Raises Conflict if it
    is another workspace's.
    """
    session_id = session.session_id
    # Version 0: the event of the creation makes it 1.
    values = {**session_values(session), "version": 0}
    if not insert_new(connection, sessions, values):
        check_workspace(connection, session_id, session.workspace)
        try:
            return read_session(connection, session_id), False
        except SessionNotFound:
            raise under_deletion(session_id) from None
    connection.execute(
        insert(lever_versions), [lever_values(session_id, lever) for lever in levers]
    )
    connection.execute(insert(candidates), candidate_values(session_id, baseline))
    change = Change(connection, values)
    change.record(
        "mipro.session.created",
        f"session created with baseline {baseline.candidate_id}",
        data={"baseline_id": baseline.candidate_id, "state": session.state},
        at=session.created_at,
    )
    return change.written_session(), True


def standing(connection: Connection, session_id: str) -> Standing:
    """The session with its duel and totals, all as of one moment."""
    return Standing(
        read_session(connection, session_id),
        duels.newest(connection, session_id),
        totals(connection, session_id),
        count_active(connection, session_id),
        withdrawn_ids(connection, session_id),
    )


def learning_facts(connection: Connection, session_id: str) -> LearningFacts:
    """The candidates, rewards and failures that the session's belief follows from."""
    return LearningFacts(
        candidates_of(connection, session_id),
        blocks_of(connection, session_id),
        newest_failures(connection, session_id),
    )


def page(
    connection: Connection, wanted: SessionFilter, *, limit: int, cursor: str | None = None
) -> Page[Session]:
    """A page of sessions, newest first. Raises InputInvalid for a cursor of another list."""
    query = (
        select(sessions)
        .where(*_matches(wanted))
        .order_by(sessions.c.created_at.desc(), sessions.c.session_id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        key = tuple_(type_coerce(sessions.c.created_at, BigInteger), sessions.c.session_id)
        query = query.where(key < decode_cursor(cursor, int, str))
    rows = connection.execute(query).mappings().all()
    found = tuple(session_record(row) for row in rows[:limit])
    if len(rows) <= limit:
        return Page(found)
    last = found[-1]
    return Page(found, encode_cursor(microseconds(last.created_at), last.session_id))


def session_ids(connection: Connection) -> tuple[str, ...]:
    """The ids of all sessions."""
    return tuple(connection.scalars(select(sessions.c.session_id).where(present)))


def set_state(
    connection: Connection,
    session_id: str,
    state: SessionState,
    *,
    at: datetime,
    stop_reason: str | None = None,
) -> Session:
    """Change the state.

    Setting the present state again changes nothing. Raises SessionEnded after a final state.
    """
    with changing(connection, session_id) as change:
        present = SessionState(change["state"])
        if present is not state:
            if present.final:
                raise SessionEnded(
                    f"session {session_id!r} is {present} and cannot become {state}; "
                    "create a new session to go on"
                )
            change.set(state=state, stop_reason=stop_reason)
            change.record(
                f"mipro.session.{state}",
                f"{present} -> {state}" + (f": {stop_reason}" if stop_reason else ""),
                data={"state": state, "previous": present, "stop_reason": stop_reason},
                at=at,
            )
        return change.written_session()


def set_champion(
    connection: Connection, session_id: str, candidate_id: str, *, at: datetime, reason: str
) -> Session:
    """Make a candidate the champion, in any state of the session.

    A retired candidate is in play again, and a running duel is abandoned. Raises Conflict if the
    candidate's prompt was forgotten.
    """
    with changing(connection, session_id) as change:
        check_candidates(connection, session_id, candidate_id)
        check_not_forgotten(connection, candidate_id)
        if change["champion_id"] != candidate_id:
            duels.abandon(change, at=at, reason=f"{candidate_id} is made the champion: {reason}")
        duels.promote(change, candidate_id, at=at, reason=reason)
        return change.written_session()


def begin_epoch(connection: Connection, session_id: str, *, at: datetime, reason: str) -> Session:
    """Begin a new epoch: later rewards go to blocks of their own. A running duel is abandoned.

    A reward belongs to the epoch in which its rollout was pinned.
    """
    with changing(connection, session_id) as change:
        duels.abandon(change, at=at, reason=f"a new epoch begins: {reason}")
        end_epoch(change, at=at)
        change.record(
            "mipro.epoch.begun",
            f"epoch {change['epoch']} begins after {change['rollouts']} rollouts: {reason}",
            data={"epoch": change["epoch"], "rollouts": change["rollouts"], "reason": reason},
            at=at,
        )
        return change.written_session()


def rotate_secret(connection: Connection, session_id: str, secret: str, *, at: datetime) -> Session:
    """Give the session's proxy URL another secret, in any state of the session."""
    with changing(connection, session_id) as change:
        change.set(proxy_secret=secret)
        change.record(
            "mipro.session.url_rotated",
            "the session's URLs have a new secret; the earlier ones are refused",
            data={},
            at=at,
        )
        return change.written_session()


def record_proposal_round(
    connection: Connection,
    session_id: str,
    *,
    rewards: int,
    asked: bool,
    error: str | None,
    warning: str | None,
    usage: Usage,
    at: datetime,
) -> Session:
    """Count a round that looked at `rewards` rewards, and the tokens of its proposer model.

    After a round that `asked` the model, an error counts as one more failure in a row, and success
    sets the count to zero; a round that did not ask leaves count and error as they are. `warning`
    says what the round could not learn from.
    """
    with changing(connection, session_id) as change:
        number = change["proposal_number"] + 1
        if asked:
            failures = 0 if error is None else change["proposal_failures"] + 1
            change.set(proposal_failures=failures, proposal_error=error)
        change.set(
            proposal_number=number,
            proposal_warning=warning,
            proposal_rewards=rewards,
            proposed_at=at,
            proposer_prompt_tokens=change["proposer_prompt_tokens"] + usage.prompt_tokens,
            proposer_completion_tokens=(
                change["proposer_completion_tokens"] + usage.completion_tokens
            ),
        )
        change.record(
            "mipro.proposal.round",
            f"proposal round {number} after {rewards} rewards"
            + (f" failed: {error}" if error is not None else "")
            + (f"; {warning}" if warning is not None else ""),
            data={
                "number": number,
                "rewards": rewards,
                "asked": asked,
                "failures": change["proposal_failures"],
                "error": error,
                "warning": warning,
                **dict(usage),
            },
            at=at,
        )
        return change.written_session()


def events_since(
    connection: Connection, session_id: str, *, since: int, limit: int
) -> tuple[Event, ...]:
    """Events with `seq` greater than `since`, oldest first."""
    query = (
        select(events)
        .where(events.c.session_id == session_id, events.c.seq > since)
        .order_by(events.c.seq)
        .limit(limit)
    )
    rows = connection.execute(query).mappings().all()
    if not rows:
        check_session(connection, session_id)
    return tuple(event_record(row) for row in rows)


def add_event(
    connection: Connection,
    session_id: str,
    event_type: str,
    message: str,
    *,
    data: JsonObject,
    at: datetime,
) -> None:
    """Append an event to the session's feed."""
    with changing(connection, session_id) as change:
        change.record(event_type, message, data=data, at=at)


def _matches(wanted: SessionFilter) -> list[ColumnElement[Any]]:
    equal = {
        sessions.c.state: wanted.state,
        sessions.c.kind: wanted.kind,
        sessions.c.session_id: wanted.system_id,
        sessions.c.system_name: wanted.system_name,
        sessions.c.workspace: wanted.workspace,
    }
    conditions: list[ColumnElement[Any]] = [
        present,
        *(column == value for column, value in equal.items() if value is not None),
    ]
    if wanted.created_after is not None:
        conditions.append(sessions.c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(sessions.c.created_at < wanted.created_before)
    return conditions


def overview(connection: Connection) -> Overview:
    """Totals of all sessions by state, zeros included. Reads every session's row."""
    found = {
        SessionState(row.state): StateTotals(
            sessions=row.sessions, **{name: int(row._mapping[name]) for name in _SUMMED}
        )
        for row in connection.execute(_BY_STATE)
    }
    counted = connection.execute(_CANDIDATES).one()
    return Overview(
        by_state={state: found.get(state, StateTotals()) for state in SessionState},
        active_candidates=counted.active,
        retired_candidates=counted.retired,
    )


def take_turn(
    connection: Connection, session_id: str, *, holder: str, at: datetime, until: datetime
) -> bool:
    """Take or renew the turn to propose for a session; whether the holder has it now.

    A turn is free when no server holds it, when its time is up, and when it would last so long that
    a clock must have been set back since. `at` is the present.
    """
    postgres = connection.dialect.name == "postgresql"
    adding = (postgresql if postgres else sqlite).insert(proposers)
    # Clocks differ by less than a turn. One that is held for longer than two was taken before a
    # clock was set back: a holder that lives renews it, with its clock as it is now.
    free = or_(
        proposers.c.held_until <= at,
        proposers.c.held_until > until + (until - at),
        proposers.c.holder == holder,
    )
    values = {"holder": holder, "held_until": until}
    taking = adding.values(session_id=session_id, **values).on_conflict_do_update(
        index_elements=[proposers.c.session_id], set_=values, where=free
    )
    return connection.execute(taking).rowcount == 1


def give_turn_back(connection: Connection, session_id: str, *, holder: str) -> None:
    """End the holder's turn, if it still has it."""
    own = (proposers.c.session_id == session_id) & (proposers.c.holder == holder)
    connection.execute(delete(proposers).where(own))
