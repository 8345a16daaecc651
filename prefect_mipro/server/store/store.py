"""The store: every operation on the database, listed one per line.

An operation is a function of a connection; each call of a method of `Store` runs one of them in a
transaction of its own. One conformance suite holds both databases to the contract:

* Facts are inserted, counters are added to in the same transaction, beliefs are never stored.
* Every insert that may race has a unique key; the loser gets `Conflict`, or the row that won
  where the docstring says so.
* Every change of a session appends an event; `Session.version` is the `seq` of the last one.
* Unknown ids raise `SessionNotFound` or `CandidateNotFound`; a database that refuses or is out
  of reach raises `StoreFailed` and leaves nothing half-written.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, Generic, Protocol, Self, TypeVar, overload

from prefect_mipro.server.store import (
    candidates,
    changes,
    duels,
    failures,
    keys,
    observations,
    removal,
    rewards,
    rollouts,
    sessions,
    sqlite,
    transfer,
    upkeep,
)
from prefect_mipro.server.store.database import Database, P, T, Work


class _OfSession(Protocol):
    @property
    def session_id(self) -> str: ...


S = TypeVar("S", bound=str | _OfSession)


class _Operation(Generic[P, T]):
    """A function of a connection as a method of the store, with its signature."""

    def __init__(self, work: Work[P, T]) -> None:
        self.__doc__ = work.__doc__
        self._work = work

    @overload
    def __get__(self, store: None, owner: type) -> Self: ...
    @overload
    def __get__(self, store: Store, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, store: Store | None, owner: type) -> Any:
        return self if store is None else self._bound(store)

    def _bound(self, store: Store) -> Callable[P, Coroutine[Any, Any, T]]:
        raise NotImplementedError


class Reads(_Operation[P, T]):
    """An operation that changes nothing."""

    def _bound(self, store: Store) -> Callable[P, Coroutine[Any, Any, T]]:
        return partial(store.database.read, self._work)


class Writes(_Operation[P, T]):
    """An operation whose changes the watchers of sessions need not know."""

    def _bound(self, store: Store) -> Callable[P, Coroutine[Any, Any, T]]:
        return partial(store.database.write, self._work)


class WritesLast(_Operation[P, T]):
    """Like `Writes`, and gives way to all other writes."""

    def _bound(self, store: Store) -> Callable[P, Coroutine[Any, Any, T]]:
        return partial(store.database.write_last, self._work)


class Changes(_Operation[Concatenate[S, P], T]):
    """An operation that changes a session: the one its first argument names or belongs to."""

    def _bound(self, store: Store) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
        async def changed(subject: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await store.database.write(self._work, subject, *args, **kwargs)
            finally:
                # Also after an error: it may have come after the commit.
                store.tell(subject if isinstance(subject, str) else subject.session_id)

        return changed


class Store:
    """Sessions, candidates, rollouts, traces, rewards, duels, events and keys in one database.

    Each method takes what its function takes after the connection; the function's docstring says
    what it promises. Where a method has its module's name, it is the last of that module's.
    """

    create_session = Writes(sessions.create)
    session = Reads(changes.read_session)
    standing = Reads(sessions.standing)
    learning_facts = Reads(sessions.learning_facts)
    set_state = Changes(sessions.set_state)
    set_champion = Changes(sessions.set_champion)
    begin_epoch = Changes(sessions.begin_epoch)
    record_proposal_round = Changes(sessions.record_proposal_round)
    rotate_secret = Changes(sessions.rotate_secret)
    events = Reads(sessions.events_since)
    add_event = Changes(sessions.add_event)
    overview = Reads(sessions.overview)
    take_turn = Writes(sessions.take_turn)
    give_turn_back = Writes(sessions.give_turn_back)
    session_ids = Reads(sessions.session_ids)
    sessions = Reads(sessions.page)

    levers = Reads(candidates.levers_of)
    totals = Reads(candidates.totals)
    candidate = Reads(candidates.read_candidate)
    add_candidates = Changes(candidates.add)
    decide_review = Changes(candidates.decide)
    retire = Changes(candidates.retire)
    withdraw = Changes(candidates.withdraw)
    candidates = Reads(candidates.candidates_of)

    duel = Reads(duels.newest)
    open_duel = Changes(duels.begin)
    duel_observations = Reads(duels.observations)
    awaited_in_duel = Reads(duels.awaited)
    close_duel = Changes(duels.end)
    successor = Reads(duels.successor)

    rollout = Reads(rollouts.find)
    pin = Writes(rollouts.pin)
    note_applied = Changes(rollouts.note_applied)
    record_calls = WritesLast(rollouts.record_calls)
    post_trace = Changes(rollouts.post_trace)

    fall_back = Changes(failures.fall_back)
    awaiting_rewards = Reads(failures.awaiting_rewards)
    give_up = Changes(failures.give_up)
    watermark = Reads(failures.watermark)

    add_reward = Changes(rewards.add)
    example_rewards = Reads(rewards.of_example)

    example_traces = Reads(observations.example_traces)
    rollout_reports = Reads(observations.rollout_reports)
    traces_of = Reads(observations.traces_of)
    frames = Reads(observations.newest_frames)
    last_unapplied = Reads(observations.last_unapplied)
    seed_evals = Reads(observations.seed_evals)

    part = Reads(transfer.read_part)
    restore = Changes(transfer.restore)

    workspace_of = Reads(keys.workspace_of)
    add_key = Writes(keys.add_key)
    revoke_key = Writes(keys.revoke_key)
    keys = Reads(keys.all_keys)

    begin_deletion = Changes(removal.begin_deletion)
    begun_deletions = Reads(removal.begun_deletions)
    thin = Changes(removal.thin)
    delete_session = Changes(removal.delete_session)
    begin_forgetting = Changes(removal.begin_forgetting)
    begun_forgettings = Reads(removal.begun_forgettings)
    traceable = Reads(removal.traceable)
    call_texts = Reads(removal.call_texts)
    empty_levers = Changes(removal.empty_levers)
    remove_rollouts = WritesLast(removal.remove_rollouts)
    remove_calls = WritesLast(removal.remove_calls)
    remove_events = WritesLast(removal.remove_events)
    end_forgetting = Changes(removal.end_forgetting)

    unmarked_demonstrations = Reads(upkeep.unmarked_demonstrations)
    remove_old = WritesLast(upkeep.remove_old)
    forget_texts = WritesLast(upkeep.forget_texts)
    require_writable = Writes(upkeep.require_writable)
    give_back_space = WritesLast(upkeep.give_back_space)
    # The connection that makes all of this store's changes does not count them.
    others_version = Writes(sqlite.others_version)

    def __init__(self, database: Database) -> None:
        self.database = database
        self._watchers: list[Callable[[str], None]] = []

    @property
    def shared(self) -> bool:
        """Whether other servers may have the database open, too."""
        return self.database.shared

    def watch(self, changed: Callable[[str], None]) -> None:
        """Have `changed` called with the id of each session after this store changed it.

        Pins and recorded calls are no changes in this sense.
        """
        self._watchers.append(changed)

    def tell(self, session_id: str) -> None:
        """Call the watchers of sessions."""
        for changed in self._watchers:
            changed(session_id)

    async def close(self) -> None:
        """Close all connections and let go of the database."""
        await self.database.close()
