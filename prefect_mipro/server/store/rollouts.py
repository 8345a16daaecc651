"""Rollouts and their calls: pins and traces, many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select, update

from prefect_mipro.errors import RolloutNotFound, SessionNotFound
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.rollouts import Rollout, Trace
from prefect_mipro.server.store import failures
from prefect_mipro.server.store.blocks import Epoch
from prefect_mipro.server.store.candidates import shows_forgotten
from prefect_mipro.server.store.changes import (
    UNDER_DELETION,
    changing,
    check_candidates,
    check_session,
)
from prefect_mipro.server.store.database import ask_given, change_given, insert_rows, lock_given
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.removal import forgotten_since
from prefect_mipro.server.store.rewards import (
    attach,
    insert_rollout,
    read_reward,
    read_rollout,
    tell_applied,
)
from prefect_mipro.server.store.rows import (
    ROLLOUT_COLUMNS,
    TRACE_COLUMNS,
    rollout_row,
    trace_row,
)
from prefect_mipro.server.store.schema import (
    candidates,
    duels,
    rewards,
    rollouts,
    sessions,
    traces,
)

# Who changes many rows locks them first, in one order for all: sessions, rollouts, candidates.
_LOCK = f"""
    SELECT session_id, rollouts, epoch, epoch_first, serving_candidate_id, serving_rollouts
    FROM mipro_sessions, {{given}} WHERE session_id = column1 AND version <> {UNDER_DELETION}
    {{lock: session_id}}
"""
_LOCK_ROLLOUTS = """
    SELECT 1 FROM mipro_rollouts, {given} WHERE session_id = column1 AND rollout_id = column2
    {lock: session_id, rollout_id}
"""
_LOCK_CANDIDATES = """
    SELECT 1 FROM mipro_candidates, {given} WHERE session_id = column1 AND candidate_id = column2
    {lock: session_id, candidate_id}
"""
_WITHDRAWN = """
    SELECT candidate_id FROM mipro_candidates, {given}
    WHERE session_id = column1 AND candidate_id = column2 AND withdrawn_at IS NOT NULL
"""
_FOUND = """
    SELECT column1 FROM {given} WHERE
    EXISTS (SELECT 1 FROM mipro_rollouts WHERE session_id = column1 AND rollout_id = column2) OR
    EXISTS (SELECT 1 FROM mipro_rewards WHERE session_id = column1 AND rollout_id = column2)
"""
_COUNT_ROLLOUTS = """
    UPDATE mipro_candidates SET rollouts = rollouts + given.column3,
        unapplied_rollouts = unapplied_rollouts + given.column4
    FROM {given} WHERE session_id = given.column1 AND candidate_id = given.column2
"""
_COUNT_DUEL_ROLLOUTS = """
    UPDATE mipro_duels SET rollouts = rollouts + given.column3
    FROM {given} WHERE session_id = given.column1 AND number = given.column2
"""
_SERVE = """
    UPDATE mipro_sessions SET rollouts = given.column2, serving_candidate_id = given.column3,
        serving_rollouts = given.column4
    FROM {given} WHERE session_id = given.column1
"""
_SERVED_COLUMNS = (
    sessions.c.session_id,
    sessions.c.rollouts,
    sessions.c.serving_candidate_id,
    sessions.c.serving_rollouts,
)
_ROLLOUT_KEY = (rollouts.c.session_id, rollouts.c.rollout_id)
_CANDIDATE_KEY = (candidates.c.session_id, candidates.c.candidate_id)
# Rollouts of which the calls say more than was known: that the prompt was applied, or not.
_NEWS = """
    SELECT column1, column2, column3 FROM mipro_rollouts, {given}
    WHERE session_id = column1 AND rollout_id = column2 AND (applied IS NULL OR applied < column3)
"""
_NEWS_COLUMNS = (*_ROLLOUT_KEY, rollouts.c.applied)
# The first answered call is an example until a second one follows.
_COUNT_ANSWERED_CALLS = """
    UPDATE mipro_rollouts SET
        answered_calls = answered_calls + given.column3,
        example_trace_id = CASE
            WHEN given.column3 = 0 THEN example_trace_id
            WHEN answered_calls = 0 THEN given.column4
        END
    FROM {given} WHERE session_id = given.column1 AND rollout_id = given.column2
"""
_ANSWERED_COLUMNS = (
    rollouts.c.session_id,
    rollouts.c.rollout_id,
    rollouts.c.answered_calls,
    rollouts.c.example_trace_id,
)
_CALL_COUNTERS = (
    candidates.c.calls,
    candidates.c.failed_calls,
    candidates.c.unapplied_calls,
    candidates.c.prompt_tokens,
    candidates.c.completion_tokens,
    candidates.c.latency_seconds_sum,
    candidates.c.untimed_calls,
    candidates.c.first_byte_seconds_sum,
    candidates.c.first_byte_calls,
    candidates.c.cost_usd_sum,
)
_COUNT_CALLS = f"""
    UPDATE mipro_candidates
    SET {
    ", ".join(
        f"{column.name} = {column.name} + given.column{number}"
        for column, number in zip(_CALL_COUNTERS, count(3), strict=False)
    )
}
    FROM {{given}} WHERE session_id = given.column1 AND candidate_id = given.column2
"""

_TRACE = select(traces).where(traces.c.trace_id == bindparam("of_trace"))


def find(connection: Connection, session_id: str, rollout_id: str) -> Rollout | None:
    """The rollout, if it is pinned. Raises SessionNotFound."""
    found = read_rollout(connection, session_id, rollout_id)
    if found is None:
        check_session(connection, session_id)
    return found


def pin(connection: Connection, wanted: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Insert rollouts in their order. Returns them, or the rollout that was pinned before.

    Inserting counts the rollout for its candidate and its duel, remembers the session's serving
    candidate, and attaches a reward that waits for the rollout. A rollout that is no evidence
    counts as one of its candidate's `unapplied_rollouts`, and for no duel.
    """
    of_session: dict[str, list[int]] = {}
    for index, rollout in enumerate(wanted):
        of_session.setdefault(rollout.session_id, []).append(index)
    present = _locked(connection, sorted(of_session))
    known = _known(connection, wanted)
    serving = {(rollout.session_id, rollout.candidate_id) for rollout in wanted}
    lock_given(connection, _LOCK_CANDIDATES, _CANDIDATE_KEY, sorted(serving))
    pinned: dict[int, Rollout] = {}
    new: list[tuple[_Present, list[int]]] = []
    for session_id, own in of_session.items():
        one_by_one = session_id in known or present[session_id].changes_blocks(len(own))
        if one_by_one:
            pinned.update((index, _pin(connection, wanted[index])) for index in own)
        else:
            new.append((present[session_id], own))
    pinned.update(_pin_new(connection, wanted, new))
    return tuple(pinned[index] for index in range(len(wanted)))


def note_applied(
    connection: Connection, session_id: str, rollout_id: str, *, applied: bool
) -> None:
    """Learn whether the candidate's prompt was in a call of the rollout; one call is enough.

    A rollout none of whose calls had the prompt is no evidence: what its reward added to
    statistics, duel, blocks and example is taken back, and added again once a call with the prompt
    is known.
    """
    with changing(connection, session_id) as change:
        tell_applied(change, rollout_id, applied)


def record_calls(connection: Connection, calls: Sequence[CallRecord]) -> None:
    """Insert traces, and add the calls to the statistics of their candidates.

    What the calls say of `applied` is noted as by `note_applied`. A failed call marks its rollout,
    unless the rollout has its reward or was given up. After a refused call no reward is awaited; in
    a duel the rollout counts as 0. A reward above 0 takes other failures back.
    """
    news = _news(connection, calls)
    failed = [call for call in calls if call.failure is not None]
    changed = {session_id for session_id, _, _ in news}
    changed |= {call.trace.session_id for call in failed}
    with ExitStack() as locked:
        changes = {
            session_id: locked.enter_context(changing(connection, session_id))
            for session_id in sorted(changed)
        }
        _lock_for(connection, calls)
        for session_id, rollout_id, applied in news:
            tell_applied(changes[session_id], rollout_id, bool(applied))
        for call in failed:
            failures.note_failure(changes[call.trace.session_id], call)
        _record(connection, calls)


def _record(connection: Connection, calls: Sequence[CallRecord]) -> None:
    _count_answered_calls(connection, calls)
    _count_calls(connection, calls)
    emptied = _emptied(connection, calls)
    rows = [
        trace_row(
            call.trace.model_copy(update={"messages": ()})
            if call.trace.candidate_id in emptied
            else call.trace
        )
        for call in calls
    ]
    insert_rows(connection, traces, TRACE_COLUMNS, rows)


def _emptied(connection: Connection, calls: Sequence[CallRecord]) -> set[str]:
    """The candidates whose prompt was forgotten while these calls, made with it, were under way."""
    served = {(call.trace.session_id, call.trace.candidate_id) for call in calls}
    withdrawn = ask_given(connection, _WITHDRAWN, _CANDIDATE_KEY, sorted(served))
    return {row[0] for row in withdrawn if shows_forgotten(connection, row[0])}


@dataclass(frozen=True)
class _Present:
    """The part of a session's row that a pin builds on."""

    session_id: str
    rollouts: int
    epoch: int
    epoch_first: int
    serving_candidate_id: str | None
    serving_rollouts: int

    def changes_blocks(self, more: int) -> bool:
        """Whether the blocks of rewards get longer with so many more rollouts."""
        before = Epoch(self.epoch_first, self.rollouts)
        return before.block_length != Epoch(self.epoch_first, self.rollouts + more).block_length


def _locked(connection: Connection, session_ids: Sequence[str]) -> dict[str, _Present]:
    """Raises SessionNotFound."""
    given = [(session_id,) for session_id in session_ids]
    rows = ask_given(connection, _LOCK, (sessions.c.session_id,), given)
    present = {row[0]: _Present(*row) for row in rows}
    for session_id in session_ids:
        if session_id not in present:
            raise SessionNotFound.of(session_id)
    return present


def _known(connection: Connection, wanted: Sequence[Rollout]) -> set[str]:
    """The sessions in which a wanted rollout exists, has a waiting reward, or is wanted twice."""
    keys = Counter((rollout.session_id, rollout.rollout_id) for rollout in wanted)
    found = ask_given(connection, _FOUND, _ROLLOUT_KEY, sorted(keys))
    return {row[0] for row in found} | {key[0] for key, times in keys.items() if times > 1}


def _pin_new(
    connection: Connection,
    wanted: Sequence[Rollout],
    new: Sequence[tuple[_Present, Sequence[int]]],
) -> dict[int, Rollout]:
    """Insert all new rollouts of all sessions at once. Returns them by index."""
    if not new:
        return {}
    pinned: dict[int, Rollout] = {}
    rows: list[Sequence[Any]] = []
    served: list[tuple[str, int, str | None, int]] = []
    for session, own in new:
        serving_id, serving_rollouts = session.serving_candidate_id, session.serving_rollouts
        for position, index in enumerate(own, session.rollouts + 1):
            rollout = wanted[index]
            rows.append(rollout_row(rollout, position=position, epoch=session.epoch))
            pinned[index] = rollout.model_copy(update={"position": position, "reward": None})
            again = rollout.candidate_id == serving_id
            serving_id, serving_rollouts = (
                rollout.candidate_id,
                serving_rollouts + 1 if again else 1,
            )
        after = session.rollouts + len(own)
        served.append((session.session_id, after, serving_id, serving_rollouts))
    _count_rollouts(connection, pinned.values())
    insert_rows(connection, rollouts, ROLLOUT_COLUMNS, rows)
    dueled = Counter(
        (rollout.session_id, rollout.duel_number)
        for rollout in pinned.values()
        if rollout.duel_number is not None and rollout.is_evidence
    )
    if dueled:
        columns = (duels.c.session_id, duels.c.number, duels.c.rollouts)
        change_given(connection, _COUNT_DUEL_ROLLOUTS, columns, _counted(dueled))
    change_given(connection, _SERVE, _SERVED_COLUMNS, sorted(served))
    return pinned


def _pin(connection: Connection, rollout: Rollout) -> Rollout:
    with changing(connection, rollout.session_id) as change:
        pinned = read_rollout(connection, rollout.session_id, rollout.rollout_id)
        if pinned is not None:
            return pinned
        rollout = insert_rollout(change, rollout)
        again = change["serving_candidate_id"] == rollout.candidate_id
        change.set(
            serving_candidate_id=rollout.candidate_id,
            serving_rollouts=change["serving_rollouts"] + 1 if again else 1,
        )
        waiting = read_reward(connection, rollout.session_id, rollout.rollout_id)
        if waiting is None:
            return rollout
        connection.execute(
            update(rewards)
            .where(rewards.c.reward_id == waiting.reward_id)
            .values(candidate_id=rollout.candidate_id)
        )
        return attach(change, rollout, waiting)


def _count_rollouts(connection: Connection, pinned: Collection[Rollout]) -> None:
    """Count pinned rollouts for their candidates. Raises CandidateNotFound."""
    chosen = Counter((rollout.session_id, rollout.candidate_id) for rollout in pinned)
    unapplied = Counter(
        (rollout.session_id, rollout.candidate_id) for rollout in pinned if not rollout.is_evidence
    )
    columns = (*_CANDIDATE_KEY, candidates.c.rollouts, candidates.c.unapplied_rollouts)
    rows = [(*key, number, unapplied[key]) for key, number in sorted(chosen.items())]
    if change_given(connection, _COUNT_ROLLOUTS, columns, rows) < len(chosen):
        for session_id, candidate_id in sorted(chosen):
            check_candidates(connection, session_id, candidate_id)


def _news(connection: Connection, calls: Sequence[CallRecord]) -> Sequence[tuple[str, str, bool]]:
    """The rollouts of which the calls say something new, by key, and whether it was applied."""
    told: dict[tuple[str, str], bool] = {}
    for call in calls:
        if call.applied is not None:
            key = (call.trace.session_id, call.trace.rollout_id)
            told[key] = told.get(key, False) or call.applied
    rows = [(*key, applied) for key, applied in sorted(told.items())]
    return sorted({tuple(row) for row in ask_given(connection, _NEWS, _NEWS_COLUMNS, rows)})


def _lock_for(connection: Connection, calls: Sequence[CallRecord]) -> None:
    """Lock all rollouts and candidates of the calls."""
    of_rollouts = {(call.trace.session_id, call.trace.rollout_id) for call in calls}
    of_candidates = {(call.trace.session_id, call.trace.candidate_id) for call in calls}
    lock_given(connection, _LOCK_ROLLOUTS, _ROLLOUT_KEY, sorted(of_rollouts))
    lock_given(connection, _LOCK_CANDIDATES, _CANDIDATE_KEY, sorted(of_candidates))


def _counted(counts: Mapping[tuple[str, Any], int]) -> list[tuple[str, Any, int]]:
    return [(*key, number) for key, number in sorted(counts.items())]


def _count_answered_calls(connection: Connection, calls: Sequence[CallRecord]) -> None:
    """Count answered calls for their rollouts. Raises RolloutNotFound."""
    answered: dict[tuple[str, str], tuple[int, str | None]] = {}
    for call in calls:
        trace = call.trace
        key = (trace.session_id, trace.rollout_id)
        before, example = answered.get(key, (0, None))
        if trace.status == 200 and not trace.error:
            has_text = bool(trace.input.strip() and trace.output.strip())
            teaches = has_text and not trace.unapplied_reason and not before
            example = trace.trace_id if teaches else None
            before += 1
        answered[key] = (before, example)
    rows = [(*key, *counts) for key, counts in sorted(answered.items())]
    if change_given(connection, _COUNT_ANSWERED_CALLS, _ANSWERED_COLUMNS, rows) == len(rows):
        return
    for session_id, rollout_id in sorted(answered):
        if find(connection, session_id, rollout_id) is None:
            raise RolloutNotFound(
                f"session {session_id!r} has no rollout {rollout_id!r}; pin it first"
            )


def _count_calls(connection: Connection, calls: Sequence[CallRecord]) -> None:
    """For their candidates. Raises CandidateNotFound."""
    counts: dict[tuple[str, str], list[float]] = {}
    for call in calls:
        trace = call.trace
        sums = counts.setdefault((trace.session_id, trace.candidate_id), [0] * len(_CALL_COUNTERS))
        more = (
            1,
            trace.status != 200 or trace.error != "",
            trace.unapplied_reason != "",
            trace.usage.prompt_tokens,
            trace.usage.completion_tokens,
            trace.latency_seconds or 0.0,
            trace.latency_seconds is None,
            trace.first_byte_seconds or 0.0,
            trace.first_byte_seconds is not None,
            trace.cost_usd or 0.0,
        )
        for index, value in enumerate(more):
            sums[index] += value
    rows = [(*key, *sums) for key, sums in sorted(counts.items())]
    columns = (*_CANDIDATE_KEY, *_CALL_COUNTERS)
    if change_given(connection, _COUNT_CALLS, columns, rows) < len(rows):
        for session_id, candidate_id in counts:
            check_candidates(connection, session_id, candidate_id)


def post_trace(connection: Connection, call: CallRecord) -> Trace:
    """Record one call by itself, unless a trace has its id already.

    Returns the trace that has the id: this one, or the earlier one as it stands. A call whose
    rollout was removed before the call began is the first of another rollout, which is pinned here;
    one that began before a request to forget ended is not recorded. Raises RolloutNotFound.
    """
    trace = call.trace
    # Of two that come at once, the one that locks the session later finds the other's trace.
    with changing(connection, trace.session_id):
        row = connection.execute(_TRACE, {"of_trace": trace.trace_id}).mappings().first()
        if row is not None:
            return _trace_record(row)
        wanted = call.if_removed
        if wanted and not forgotten_since(connection, wanted.session_id, wanted.pinned_at):
            _pin(connection, wanted)
        record_calls(connection, [call])
        return trace


def _trace_record(row: RowMapping) -> Trace:
    return Trace.model_validate({**row, "usage": Usage.model_validate(dict(row))})
