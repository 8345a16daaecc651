"""Rollouts and their calls: pins, traces and frames."""

from __future__ import annotations

from sqlalchemy import Connection, case, insert, select, update

from prefect_mipro.errors import RolloutNotFound
from prefect_mipro.models.rollouts import Reward, Rollout, Trace
from prefect_mipro.models.sensors import SensorFrame
from prefect_mipro.server.store.attachments import attach, insert_rollout, read_rollout
from prefect_mipro.server.store.changes import candidate_missing, changing, check_session
from prefect_mipro.server.store.rows import frame_values, reward_record, trace_values
from prefect_mipro.server.store.tables import candidates, frames, rewards, rollouts, traces


def find(connection: Connection, session_id: str, rollout_id: str) -> Rollout | None:
    found = read_rollout(connection, session_id, rollout_id)
    if found is None:
        check_session(connection, session_id)
    return found


def pin(connection: Connection, rollout: Rollout) -> Rollout:
    with changing(connection, rollout.session_id) as change:
        pinned = read_rollout(connection, rollout.session_id, rollout.rollout_id)
        if pinned is not None:
            return pinned
        insert_rollout(change, rollout)
        again = change["serving_candidate_id"] == rollout.candidate_id
        change.set(
            serving_candidate_id=rollout.candidate_id,
            serving_rollouts=change["serving_rollouts"] + 1 if again else 1,
        )
        waiting = _waiting_reward(connection, rollout)
        if waiting is None:
            return rollout.model_copy(update={"reward": None})
        connection.execute(
            update(rewards)
            .where(rewards.c.reward_id == waiting.reward_id)
            .values(candidate_id=rollout.candidate_id)
        )
        return attach(change, rollout, waiting)


def record_call(connection: Connection, trace: Trace, frame: SensorFrame) -> None:
    _count_for_rollout(connection, trace)
    _count_for_candidate(connection, trace)
    connection.execute(insert(traces), trace_values(trace))
    connection.execute(insert(frames), frame_values(frame))


def _waiting_reward(connection: Connection, rollout: Rollout) -> Reward | None:
    query = select(rewards).where(
        rewards.c.session_id == rollout.session_id, rewards.c.rollout_id == rollout.rollout_id
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else reward_record(row)


def _count_for_rollout(connection: Connection, trace: Trace) -> None:
    """Count an answered call. The first one is an example while no second one follows."""
    has_text = bool(trace.input.strip() and trace.output.strip())
    answered = _answered(trace)
    first = rollouts.c.answered_calls == 0
    counted = connection.execute(
        update(rollouts)
        .where(rollouts.c.session_id == trace.session_id, rollouts.c.rollout_id == trace.rollout_id)
        .values(
            answered_calls=rollouts.c.answered_calls + 1,
            example_trace_id=case((first, trace.trace_id)) if has_text else None,
        )
        if answered
        else update(rollouts)
        .where(rollouts.c.session_id == trace.session_id, rollouts.c.rollout_id == trace.rollout_id)
        .values(answered_calls=rollouts.c.answered_calls)
    )
    if not counted.rowcount:
        check_session(connection, trace.session_id)
        raise RolloutNotFound(
            f"session {trace.session_id!r} has no rollout {trace.rollout_id!r}; pin it first"
        )


def _count_for_candidate(connection: Connection, trace: Trace) -> None:
    columns = candidates.c
    counted = connection.execute(
        update(candidates)
        .where(columns.candidate_id == trace.candidate_id, columns.session_id == trace.session_id)
        .values(
            calls=columns.calls + 1,
            failed_calls=columns.failed_calls + int(not _answered(trace)),
            unapplied_calls=columns.unapplied_calls + int(bool(trace.unapplied_reason)),
            prompt_tokens=columns.prompt_tokens + trace.usage.prompt_tokens,
            completion_tokens=columns.completion_tokens + trace.usage.completion_tokens,
            latency_seconds_sum=columns.latency_seconds_sum + trace.latency_seconds,
        )
    )
    if not counted.rowcount:
        raise candidate_missing(trace.candidate_id, trace.session_id)


def _answered(trace: Trace) -> bool:
    return trace.status == 200 and not trace.error
