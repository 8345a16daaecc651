"""A server that is killed while it deletes a session, forgets a user and removes old rollouts.

Before each life two sessions with many rows are put into the database. As the server starts, it
removes the old rollouts of the session that programs call. Then it is asked to delete one of the
other two, and to forget one of the two users of the other, and is killed a random moment after it
has begun with either. Nothing may be damaged by that, what was acknowledged must be there or be
known as removed, and the next servers must end each deletion and each request to forget.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from prefect_mipro.models.levers import Demonstration, DemonstrationSource, DemonstrationsValue
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.changes import UNDER_DELETION
from prefect_mipro.server.store.engine import inspected, open_store
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.removal import FORGOTTEN_EVENT
from prefect_mipro.server.store.store import Store
from tests.end_to_end.conftest import BackendProcess
from tests.end_to_end.crashes import SESSION_ID, Crashes
from tests.server.store.records import (
    START,
    candidate,
    create,
    demonstrations,
    reward,
    rollout,
    trace,
)

# Some pieces of rows, and some ten milliseconds.
ROLLOUTS_OF_THE_DOOMED = 300
ROLLOUTS_OF_THE_FORGOTTEN = 150
ROLLOUTS_OF_THE_OTHER = 30
LONGEST_REMOVAL_SECONDS = 0.4
# Old enough to go when the next server but one starts.
KEPT_SECONDS = 5.0
# Rows that are dated so far ahead do not grow old here.
AHEAD = timedelta(days=1)


class RemovalCrashes(Crashes):
    """Crashes amid deletions, requests to forget, and removals.

    `found` counts how far the deletions and the requests to forget had come.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        super().__init__(folder, seed=seed)
        self.found: Counter[str] = Counter()
        self._lives = count()
        self._doomed = ""
        self._visited = ""
        self._deleted: set[str] = set()
        self._forgotten: set[str] = set()
        # The rows of the user who stays, by session.
        self._rows_that_stay: dict[str, set[str]] = {}

    @contextmanager
    def upstream(self) -> Iterator[None]:
        with super().upstream():
            kept_days = KEPT_SECONDS / 86_400
            self._options += ("--rollout-retention-days", f"{kept_days:.9f}")
            yield

    def kill_one(self) -> None:
        life = next(self._lives)
        self._doomed, self._visited = f"doomed{life}", f"visited{life}"
        asyncio.run(self._put_sessions())
        self._rows_that_stay[self._visited] = {
            row for row in self._rows() if _staying(self._visited) in row
        }
        super().kill_one()
        self.found[f"session {self._deletion(self._doomed)}"] += 1
        forgetting = self._forgetting(self._visited)
        self.found[f"forgetting {forgetting}"] += 1
        if forgetting != "not begun":
            self._forgotten.add(self._visited)

    def violations(self) -> list[str]:
        return [*asyncio.run(self._audited()), *self._lost(), *self._remembered()]

    @property
    def removed(self) -> int:
        """How many rollouts of the first session were removed so far."""
        with closing(sqlite3.connect(self._file)) as connection:
            query = "SELECT removed_rollouts FROM mipro_sessions WHERE session_id = ?"
            return int(connection.execute(query, [SESSION_ID]).fetchone()[0])

    def left_by_the_next_server(self) -> list[str]:
        """Sessions that a server which lives has not deleted, or has a user left to forget in."""
        with BackendProcess(*self._options):
            deadline = time.monotonic() + 60
            while (begun := self._begun()) and time.monotonic() < deadline:
                time.sleep(0.05)
        return begun

    async def _put_sessions(self) -> None:
        store = await open_store(self.database_url)
        await create(store, self._doomed)
        names = [f"{self._doomed}_{number}" for number in range(ROLLOUTS_OF_THE_DOOMED)]
        await self._put(store, self._doomed, names, at=START, text="What?", rewarded=names[::6])
        await self._put_visited(store, self._visited)
        await store.close()

    async def _put_visited(self, store: Store, session_id: str) -> None:
        """A session of two users, each shown in demonstrations. One of them is to be forgotten."""
        await create(store, session_id)
        ahead = datetime.now(UTC) + AHEAD
        users = {_going(session_id): ROLLOUTS_OF_THE_FORGOTTEN}
        users[_staying(session_id)] = ROLLOUTS_OF_THE_OTHER
        for version, (user, number) in enumerate(users.items(), 2):
            # Ids of forgotten rollouts are kept, so that only those of the other user have a name.
            prefix = user if user == _staying(session_id) else session_id
            names = [f"{prefix}_{index}" for index in range(number)]
            await self._put(
                store, session_id, names, at=ahead, text=f"The words of {user}", user=user
            )
            shown = Demonstration(
                input=f"The words of {user}",
                output="That.",
                source=DemonstrationSource.TRAFFIC,
                rollout_id=names[0],
            )
            value = DemonstrationsValue(demonstrations=(shown,))
            made = {"value": value, "created_at": ahead}
            await store.add_candidates(
                session_id,
                [demonstrations(version).model_copy(update=made)],
                [
                    candidate(
                        version,
                        session_id,
                        candidate_id=f"cand_{version}_of_{session_id}",
                        instruction_version=1,
                        demonstrations_version=version,
                    )
                ],
            )

    async def _put(
        self,
        store: Store,
        session_id: str,
        names: Sequence[str],
        *,
        at: datetime,
        text: str,
        user: str | None = None,
        rewarded: Sequence[str] | None = None,
    ) -> None:
        own = {"session_id": session_id, "candidate_id": f"baseline_of_{session_id}"}
        await store.pin([rollout(name, pinned_at=at, **own) for name in names])
        await store.record_calls(
            [
                CallRecord(
                    trace(f"trace_{name}", name, input=text, created_at=at, **own),
                )
                for name in names
            ]
        )
        more: dict[str, Any] = {"metadata": {"user": user}, "feedback": text} if user else {}
        await asyncio.gather(
            *(
                store.add_reward(
                    reward(f"reward_{name}", name, session_id=session_id, received_at=at, **more)
                )
                for name in (names if rewarded is None else rewarded)
            )
        )

    def _before_the_kill(self, backend_url: str) -> None:
        path = f"{backend_url}/api/v1/online/sessions"
        for work in (self._delete, self._forget):
            threading.Thread(target=work, args=(path,)).start()
        deletes = self._random.random() < 0.5
        deadline = time.monotonic() + 20
        while not self._has_begun(deletes=deletes) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self._random.uniform(0, LONGEST_REMOVAL_SECONDS))

    def _delete(self, path: str) -> None:
        session_id = self._doomed
        with suppress(httpx.HTTPError):
            if httpx.delete(f"{path}/{session_id}", timeout=20).status_code == 200:
                self._deleted.add(session_id)

    def _forget(self, path: str) -> None:
        session_id = self._visited
        wanted = {"user": _going(session_id)}
        with suppress(httpx.HTTPError):
            answer = httpx.post(f"{path}/{session_id}/forget", json=wanted, timeout=20)
            if answer.status_code == 200:
                self._forgotten.add(session_id)

    def _has_begun(self, *, deletes: bool) -> bool:
        if deletes:
            return self._deletion(self._doomed) != "whole"
        return self._forgetting(self._visited) != "not begun"

    def _deletion(self, session_id: str) -> str:
        with closing(sqlite3.connect(self._file)) as connection:
            query = "SELECT version FROM mipro_sessions WHERE session_id = ?"
            row = connection.execute(query, [session_id]).fetchone()
        if row is None:
            return "gone"
        return "half deleted" if row[0] == UNDER_DELETION else "whole"

    def _forgetting(self, session_id: str) -> str:
        with closing(sqlite3.connect(self._file)) as connection:
            query = "SELECT 1 FROM mipro_events WHERE session_id = ? AND event_type = ?"
            if connection.execute(query, [session_id, FORGOTTEN_EVENT]).fetchone():
                return "ended"
            query = "SELECT 1 FROM mipro_forget_requests WHERE session_id = ?"
            begun = connection.execute(query, [session_id]).fetchone()
        return "under way" if begun else "not begun"

    def _begun(self) -> list[str]:
        with closing(sqlite3.connect(self._file)) as connection:
            query = (
                "SELECT session_id FROM mipro_sessions WHERE version = ? "
                "UNION ALL SELECT session_id FROM mipro_forget_requests"
            )
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
        yield from (f"session {lost} is there still" for lost in self._deleted & sessions)

    def _remembered(self) -> Iterator[str]:
        rows, under_way = self._rows(), set(self._begun())
        hold = Counter(found for row in rows for found in set(_GOING.findall(row)))
        for session_id in sorted(self._forgotten - under_way):
            if hold[session_id]:
                yield f"{hold[session_id]} rows of {session_id} hold what was to be forgotten"
        for session_id, staying in self._rows_that_stay.items():
            if lost := staying - rows:
                yield f"{len(lost)} rows of the other user of {session_id} are lost or changed"

    def _rows(self) -> set[str]:
        """The rows of all tables, as text."""
        with closing(sqlite3.connect(self._file)) as connection:
            return set(connection.iterdump())


def _going(session_id: str) -> str:
    """The user who is to be forgotten. The name is part of each of their texts."""
    return f"heron-of-{session_id}"


def _staying(session_id: str) -> str:
    """The other user, whose name is part of each of their rows."""
    return f"parcel-of-{session_id}"


_GOING = re.compile(rf"{_going('')}(\w+)")
