"""Turns: which of the servers that share a database proposes for a session."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, or_
from sqlalchemy.dialects import postgresql, sqlite

from prefect_mipro.server.store.tables import proposers


def take(
    connection: Connection, session_id: str, *, holder: str, at: datetime, until: datetime
) -> bool:
    """Take or renew the turn to propose for a session; whether the holder has it now.

    A turn is free when no server holds it, when its time is up, and when it would last so long that
    a clock must have been set back since. `at` is the present.
    """
    postgres = connection.dialect.name == "postgresql"
    insert = (postgresql if postgres else sqlite).insert(proposers)
    # Clocks differ by less than a turn. One that is held for longer than two was taken before a
    # clock was set back: a holder that lives renews it, with its clock as it is now.
    free = or_(
        proposers.c.held_until <= at,
        proposers.c.held_until > until + (until - at),
        proposers.c.holder == holder,
    )
    values = {"holder": holder, "held_until": until}
    taking = insert.values(session_id=session_id, **values).on_conflict_do_update(
        index_elements=[proposers.c.session_id], set_=values, where=free
    )
    return connection.execute(taking).rowcount == 1


def give_back(connection: Connection, session_id: str, *, holder: str) -> None:
    """End the holder's turn, if it still has it."""
    own = (proposers.c.session_id == session_id) & (proposers.c.holder == holder)
    connection.execute(delete(proposers).where(own))
