"""The store on SQLAlchemy: one face over its subjects."""

from __future__ import annotations

from prefect_mipro.server.store.candidates import Candidates
from prefect_mipro.server.store.duels import Duels
from prefect_mipro.server.store.observations import Observations
from prefect_mipro.server.store.rewards import Rewards
from prefect_mipro.server.store.rollouts import Rollouts
from prefect_mipro.server.store.sessions import Sessions


class SqlStore(Sessions, Candidates, Rollouts, Rewards, Observations, Duels):
    """Sessions, levers, candidates, rollouts, traces, rewards, frames, duels, events.

    `Store` in `interface.py` says what each method promises.
    """

    async def close(self) -> None:
        """Close all connections and let go of the database."""
        await self._database.close()
