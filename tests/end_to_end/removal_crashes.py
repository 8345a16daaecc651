"""A server that is killed while it deletes a session and removes old rollouts, again and again.

Before each life a session with many rows is put into the database. The server removes the old
rollouts of the first session as it starts, and is killed a random moment after it has begun to
delete the other one. Then nothing may be damaged, what was acknowledged must be there or be known
as removed, and the next servers must end each deletion.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path

import httpx

from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.changes import UNDER_DELETION
from prefect_mipro.server.store.engine import inspected, open_store
from tests.end_to_end.conftest import BackendProcess
from tests.end_to_end.crashes import SESSION_ID, Crashes
from tests.server.store.records import call, create, frame, reward, rollout, trace

# Some pieces of rows, and some ten milliseconds.
ROLLOUTS_OF_THE_DOOMED = 300
LONGEST_DELETION_SECONDS = 0.1
# Old enough to go when the next server but one starts.
KEPT_SECONDS = 5.0


class RemovalCrashes(Crashes):
    """Crashes amid deletions and removals. `found` counts how far the deletions had come."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        super().__init__(folder, seed=seed)
        self.found: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self._doomed_numbers = count()
        self._doomed = ""

    @contextmanager
    def upstream(self) -> Iterator[None]:
        with super().upstream():
            kept_days = KEPT_SECONDS / 86_400
            self._options += ("--rollout-retention-days", f"{kept_days:.9f}")
            yield

    def kill_one(self) -> None:
        self._doomed = f"doomed{next(self._doomed_numbers)}"
        asyncio.run(self._put(self._doomed))
        super().kill_one()
        self.found[self._state(self._doomed)] += 1

    def violations(self) -> list[str]:
        return [*asyncio.run(self._audited()), *self._lost()]

    @property
    def removed(self) -> int:
        """How many rollouts of the first session were removed so far."""
        with closing(sqlite3.connect(self._file)) as connection:
            query = "SELECT removed_rollouts FROM mipro_sessions WHERE session_id = ?"
            return int(connection.execute(query, [SESSION_ID]).fetchone()[0])

    def left_by_the_next_server(self) -> list[str]:
        """Deletions that a server which lives has not ended."""
        with BackendProcess(*self._options):
            deadline = time.monotonic() + 60
            while (begun := self._begun()) and time.monotonic() < deadline:
                time.sleep(0.05)
        return begun

    async def _put(self, session_id: str) -> None:
        store = await open_store(self.database_url)
        await create(store, session_id)
        own = {"session_id": session_id, "candidate_id": f"baseline_of_{session_id}"}
        names = [f"{session_id}_{number}" for number in range(ROLLOUTS_OF_THE_DOOMED)]
        await store.pin([rollout(name, **own) for name in names])
        await store.record_calls(
            [
                call(
                    trace(f"trace_{name}", name, **own),
                    frame(f"frame_{name}", name, trace_ids=(f"trace_{name}",), **own),
                )
                for name in names
            ]
        )
        await asyncio.gather(
            *(
                store.add_reward(reward(f"reward_{name}", name, session_id=session_id))
                for name in names[::6]
            )
        )
        await store.close()

    def _before_the_kill(self, backend_url: str) -> None:
        deleting = threading.Thread(target=self._delete, args=(backend_url, self._doomed))
        deleting.start()
        deadline = time.monotonic() + 20
        while self._state(self._doomed) == "whole" and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self._random.uniform(0, LONGEST_DELETION_SECONDS))

    def _delete(self, backend_url: str, session_id: str) -> None:
        with suppress(httpx.HTTPError):
            url = f"{backend_url}/api/v1/online/sessions/{session_id}"
            if httpx.delete(url, timeout=20).status_code == 200:
                self.acknowledged.add(session_id)

    def _state(self, session_id: str) -> str:
        with closing(sqlite3.connect(self._file)) as connection:
            query = "SELECT version FROM mipro_sessions WHERE session_id = ?"
            row = connection.execute(query, [session_id]).fetchone()
        if row is None:
            return "gone"
        return "half deleted" if row[0] == UNDER_DELETION else "whole"

    def _begun(self) -> list[str]:
        with closing(sqlite3.connect(self._file)) as connection:
            query = "SELECT session_id FROM mipro_sessions WHERE version = ?"
            return [row[0] for row in connection.execute(query, [UNDER_DELETION])]

    async def _audited(self) -> list[str]:
        async with inspected(self.database_url) as database:
            checks = await database.read(audit)
        return [f"{check.name}: {check.problems}" for check in checks if check.problems]

    def _lost(self) -> Iterator[str]:
        with closing(sqlite3.connect(self._file)) as connection:
            pins = dict(
                connection.execute(
                    "SELECT rollout_id, candidate_id FROM mipro_rollouts WHERE session_id = ?",
                    [SESSION_ID],
                )
            )
            removed = dict(
                connection.execute(
                    "SELECT rollout_id, candidate_id FROM mipro_removed_rollouts "
                    "WHERE session_id = ?",
                    [SESSION_ID],
                )
            )
            scores = dict(connection.execute("SELECT rollout_id, score FROM mipro_rewards"))
            rollouts, rewards = connection.execute(
                "SELECT rollouts, rewards FROM mipro_sessions WHERE session_id = ?", [SESSION_ID]
            ).fetchone()
            found = connection.execute("SELECT session_id FROM mipro_sessions")
            sessions = {row[0] for row in found}
        ledger = self.ledger
        for rollout_id, candidate_id in [*ledger.pins.items()]:
            # Of one that was removed without a reward, its id is known and not its candidate.
            kept = pins.get(rollout_id, removed.get(rollout_id, "nothing"))
            if kept not in (candidate_id, None):
                yield f"pin of {rollout_id}: told {candidate_id}, found {kept}"
        for rollout_id, score in [*ledger.rewards.items()]:
            if scores.get(rollout_id) != score and removed.get(rollout_id) is None:
                yield f"reward of {rollout_id}: told {score}, found {scores.get(rollout_id)}"
        if not len(ledger.rewards) <= rewards <= len(ledger.sent_rewards):
            yield f"{rewards} rewards: {len(ledger.rewards)} taken, {len(ledger.sent_rewards)} sent"
        if rollouts < len(ledger.pins):
            yield f"{rollouts} rollouts: {len(ledger.pins)} were answered"
        yield from (f"session {lost} is there still" for lost in self.acknowledged & sessions)
