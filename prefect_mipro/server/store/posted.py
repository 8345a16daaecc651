"""Traces that a program posts of calls it made itself: each is counted once, by its id."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, select

from prefect_mipro.models.chat import Usage
from prefect_mipro.models.rollouts import Trace
from prefect_mipro.server.store.changes import changing
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.rollouts import record_calls
from prefect_mipro.server.store.tables import traces

_TRACE = select(traces).where(traces.c.trace_id == bindparam("of_trace"))


def post_trace(connection: Connection, call: CallRecord) -> Trace:
    """Record one call that a program made itself, unless a trace has its id already.

    Returns the trace that has the id: this one, or the earlier one as it stands.
    """
    trace = call.trace
    # Of two that come at once, the one that locks the session later finds the other's trace.
    with changing(connection, trace.session_id):
        row = connection.execute(_TRACE, {"of_trace": trace.trace_id}).mappings().first()
        if row is not None:
            return _trace_record(row)
        record_calls(connection, [call])
        return trace


def _trace_record(row: RowMapping) -> Trace:
    return Trace.model_validate({**row, "usage": Usage.model_validate(dict(row))})
