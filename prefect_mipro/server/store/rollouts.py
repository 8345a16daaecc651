"""Rollouts and their calls: pins, traces and frames, many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count

from sqlalchemy import Connection, update

from prefect_mipro.errors import RolloutNotFound
from prefect_mipro.models.rollouts import Rollout
from prefect_mipro.server.store.attachments import attach, insert_rollout, read_reward, read_rollout
from prefect_mipro.server.store.blocks import Epoch
from prefect_mipro.server.store.bulk import ask, ask_given, change, change_given, insert_rows
from prefect_mipro.server.store.changes import (
    changing,
    check_candidates,
    check_session,
    session_missing,
)
from prefect_mipro.server.store.interface import CallRecord
from prefect_mipro.server.store.rows import (
    FRAME_COLUMNS,
    ROLLOUT_COLUMNS,
    TRACE_COLUMNS,
    frame_row,
    rollout_row,
    trace_row,
)
from prefect_mipro.server.store.tables import candidates, frames, rewards, rollouts, traces

_LOCK = """
    SELECT rollouts, epoch, epoch_first, serving_candidate_id, serving_rollouts
    FROM mipro_sessions WHERE session_id = ? {lock}
"""
_FOUND = """
    SELECT 1 FROM {given} WHERE
    EXISTS (SELECT 1 FROM mipro_rollouts WHERE session_id = ? AND rollout_id = column1) OR
    EXISTS (SELECT 1 FROM mipro_rewards WHERE session_id = ? AND rollout_id = column1)
    LIMIT 1
"""
_COUNT_ROLLOUTS = """
    UPDATE mipro_candidates SET rollouts = rollouts + given.column2
    FROM {given} WHERE candidate_id = given.column1 AND session_id = ?
"""
_COUNT_DUEL_ROLLOUTS = """
    UPDATE mipro_duels SET rollouts = rollouts + ? WHERE session_id = ? AND number = ?
"""
_SERVE = """
    UPDATE mipro_sessions SET rollouts = ?, serving_candidate_id = ?, serving_rollouts = ?
    WHERE session_id = ?
"""
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


def find(connection: Connection, session_id: str, rollout_id: str) -> Rollout | None:
    found = read_rollout(connection, session_id, rollout_id)
    if found is None:
        check_session(connection, session_id)
    return found


def pin(connection: Connection, wanted: Sequence[Rollout]) -> tuple[Rollout, ...]:
    of_session: dict[str, list[int]] = {}
    for index, rollout in enumerate(wanted):
        of_session.setdefault(rollout.session_id, []).append(index)
    pinned: dict[int, Rollout] = {}
    # In one order for all, so that two transactions never wait for each other.
    for session_id, own in sorted(of_session.items()):
        found = _pin_all(connection, session_id, [wanted[index] for index in own])
        pinned.update(zip(own, found, strict=True))
    return tuple(pinned[index] for index in range(len(wanted)))


def record_calls(connection: Connection, calls: Sequence[CallRecord]) -> None:
    _count_answered_calls(connection, calls)
    _count_calls(connection, calls)
    insert_rows(connection, traces, TRACE_COLUMNS, [trace_row(call.trace) for call in calls])
    insert_rows(connection, frames, FRAME_COLUMNS, [frame_row(call) for call in calls])


def _pin_all(connection: Connection, session_id: str, wanted: Sequence[Rollout]) -> list[Rollout]:
    """Insert all at once where all are new and nothing waits for them, else one by one."""
    rows = ask(connection, _LOCK, session_id)
    if not rows:
        raise session_missing(session_id)
    before, epoch, first, serving_id, serving_rollouts = rows[0]
    after = before + len(wanted)
    ids = {rollout.rollout_id for rollout in wanted}
    if (
        len(ids) < len(wanted)
        or Epoch(first, before).block_length != Epoch(first, after).block_length
        or ask_given(
            connection,
            _FOUND,
            (rollouts.c.rollout_id,),
            [(rollout_id,) for rollout_id in ids],
            session_id,
            session_id,
        )
    ):
        return [_pin(connection, rollout) for rollout in wanted]
    chosen = Counter(rollout.candidate_id for rollout in wanted)
    _count_rollouts(connection, session_id, chosen)
    values = [
        rollout_row(rollout, position=position, epoch=epoch)
        for rollout, position in zip(wanted, count(before + 1), strict=False)
    ]
    insert_rows(connection, rollouts, ROLLOUT_COLUMNS, values)
    dueled = Counter(r.duel_number for r in wanted if r.duel_number is not None)
    for number, more in sorted(dueled.items()):
        change(connection, _COUNT_DUEL_ROLLOUTS, more, session_id, number)
    for rollout in wanted:
        again = rollout.candidate_id == serving_id
        serving_id, serving_rollouts = rollout.candidate_id, serving_rollouts + 1 if again else 1
    change(connection, _SERVE, after, serving_id, serving_rollouts, session_id)
    return [
        rollout.model_copy(update={"position": position, "reward": None})
        for rollout, position in zip(wanted, count(before + 1), strict=False)
    ]


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


def _count_rollouts(connection: Connection, session_id: str, chosen: Mapping[str, int]) -> None:
    columns = (candidates.c.candidate_id, candidates.c.rollouts)
    counted = change_given(connection, _COUNT_ROLLOUTS, columns, sorted(chosen.items()), session_id)
    if counted < len(chosen):
        check_candidates(connection, session_id, *chosen)


def _count_answered_calls(connection: Connection, calls: Sequence[CallRecord]) -> None:
    """For their rollouts. Raises RolloutNotFound."""
    answered: dict[tuple[str, str], tuple[int, str | None]] = {}
    for call in calls:
        trace = call.trace
        key = (trace.session_id, trace.rollout_id)
        before, example = answered.get(key, (0, None))
        if trace.status == 200 and not trace.error:
            has_text = bool(trace.input.strip() and trace.output.strip())
            example = trace.trace_id if has_text and not before else None
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
            trace.latency_seconds,
            trace.first_byte_seconds or 0.0,
            trace.first_byte_seconds is not None,
            trace.cost_usd or 0.0,
        )
        for index, value in enumerate(more):
            sums[index] += value
    rows = [(*key, *sums) for key, sums in sorted(counts.items())]
    columns = (candidates.c.session_id, candidates.c.candidate_id, *_CALL_COUNTERS)
    if change_given(connection, _COUNT_CALLS, columns, rows) < len(rows):
        for session_id, candidate_id in counts:
            check_candidates(connection, session_id, candidate_id)
