"""Rollouts and their calls: pins, traces and frames."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, case, insert, update

from prefect_mipro.errors import RolloutNotFound
from prefect_mipro.models.rollouts import Rollout, Trace
from prefect_mipro.models.sensors import SensorFrame
from prefect_mipro.server.store.attachments import attach, insert_rollout, read_reward, read_rollout
from prefect_mipro.server.store.changes import candidate_missing, changing, check_session
from prefect_mipro.server.store.rows import frame_values, trace_values
from prefect_mipro.server.store.tables import candidates, frames, rewards, rollouts, traces

_COUNTED_CALL = update(rollouts).where(
    rollouts.c.session_id == bindparam("of_session"),
    rollouts.c.rollout_id == bindparam("of_rollout"),
)
# The first answered call is an example until a second one follows.
_COUNT_ANSWERED_CALL = _COUNTED_CALL.values(
    answered_calls=rollouts.c.answered_calls + 1,
    example_trace_id=case((rollouts.c.answered_calls == 0, bindparam("example"))),
)
# Changes nothing, and tells whether the rollout is there.
_COUNT_FAILED_CALL = _COUNTED_CALL.values(answered_calls=rollouts.c.answered_calls)
_COUNT_CANDIDATE_CALL = (
    update(candidates)
    .where(
        candidates.c.candidate_id == bindparam("of_candidate"),
        candidates.c.session_id == bindparam("of_session"),
    )
    .values(
        {
            name: candidates.c[name] + bindparam(f"more_{name}")
            for name in (
                "calls",
                "failed_calls",
                "unapplied_calls",
                "prompt_tokens",
                "completion_tokens",
                "latency_seconds_sum",
                "first_byte_seconds_sum",
                "first_byte_calls",
                "cost_usd_sum",
            )
        }
    )
)


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
        waiting = read_reward(connection, rollout.session_id, rollout.rollout_id)
        if waiting is None:
            return rollout.model_copy(update={"reward": None})
        connection.execute(
            update(rewards)
            .where(rewards.c.reward_id == waiting.reward_id)
            .values(candidate_id=rollout.candidate_id)
        )
        return attach(change, rollout, waiting)


def record_call(connection: Connection, trace: Trace, frame: SensorFrame) -> None:
    answered = trace.status == 200 and not trace.error
    has_text = bool(trace.input.strip() and trace.output.strip())
    of = {
        "of_session": trace.session_id,
        "of_rollout": trace.rollout_id,
        "of_candidate": trace.candidate_id,
    }
    if answered:
        example = {"example": trace.trace_id if has_text else None}
        known = connection.execute(_COUNT_ANSWERED_CALL, {**of, **example})
    else:
        known = connection.execute(_COUNT_FAILED_CALL, of)
    if not known.rowcount:
        check_session(connection, trace.session_id)
        raise RolloutNotFound(
            f"session {trace.session_id!r} has no rollout {trace.rollout_id!r}; pin it first"
        )
    counted = connection.execute(
        _COUNT_CANDIDATE_CALL,
        {
            **of,
            "more_calls": 1,
            "more_failed_calls": int(not answered),
            "more_unapplied_calls": int(bool(trace.unapplied_reason)),
            "more_prompt_tokens": trace.usage.prompt_tokens,
            "more_completion_tokens": trace.usage.completion_tokens,
            "more_latency_seconds_sum": trace.latency_seconds,
            "more_first_byte_seconds_sum": trace.first_byte_seconds or 0.0,
            "more_first_byte_calls": int(trace.first_byte_seconds is not None),
            "more_cost_usd_sum": trace.cost_usd or 0.0,
        },
    )
    if not counted.rowcount:
        raise candidate_missing(trace.candidate_id, trace.session_id)
    connection.execute(insert(traces), trace_values(trace))
    connection.execute(insert(frames), frame_values(frame))
