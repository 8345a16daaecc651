"""What all sessions come to together, for a monitor that asks every few seconds."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.changes import present
from prefect_mipro.server.store.records import Overview, StateTotals
from prefect_mipro.server.store.tables import active, candidates, retired, sessions

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


def read(connection: Connection) -> Overview:
    """One pass over the sessions; states without any are there with zeros."""
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
