"""What was seen: examples, sensor frames, seed evals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, select, tuple_

from prefect_mipro.errors import CandidateNotFound
from prefect_mipro.models.levers import LeverVersions, lever_versions
from prefect_mipro.models.rollouts import (
    ExampleTrace,
    RolloutOrder,
    RolloutReport,
    SeedEval,
    Trace,
    user_of,
)
from prefect_mipro.models.sensors import SensorFrame, frame_of_call, frame_of_reward
from prefect_mipro.server.store.changes import check_session
from prefect_mipro.server.store.records import Page, SeedEvalFilter, decode_cursor, encode_cursor
from prefect_mipro.server.store.rows import reward_record, trace_record
from prefect_mipro.server.store.schema import (
    candidates,
    example,
    rewarded,
    rewards,
    rollouts,
    traces,
    unapplied,
)

# Of so many newest rewards the worst are found without an index of their own.
WORST_OF = 2_000
# A rollout succeeds from the middle of the reward's range on.
SUCCESS = 0.5

_VERSIONS = (
    candidates.c.number,
    candidates.c.instruction_version,
    candidates.c.demonstrations_version,
)
# What the sensors of a call do not need.
_TEXTS: dict[str, Any] = {"input": "", "output": "", "messages": [], "response": None}
_REWARD_OF_ROLLOUT = and_(
    rewards.c.session_id == rollouts.c.session_id, rewards.c.rollout_id == rollouts.c.rollout_id
)


def example_traces(
    connection: Connection, session_id: str, *, candidate_id: str | None = None, limit: int
) -> tuple[ExampleTrace, ...]:
    """The newest rewarded rollouts that made exactly one answered call with text.

    With `candidate_id` only those of that candidate.
    """
    query = (
        select(
            traces.c.trace_id,
            traces.c.input,
            traces.c.output,
            rollouts.c.rollout_id,
            rollouts.c.candidate_id,
            rollouts.c.example_id,
            rollouts.c.reward,
            func.coalesce(rollouts.c.correlation_id, rewards.c.correlation_id).label(
                "correlation_id"
            ),
            rewards.c.expected,
            rewards.c.feedback,
            rewards.c.shareable,
            rewards.c.metadata,
        )
        .join_from(rollouts, traces, traces.c.trace_id == rollouts.c.example_trace_id)
        .join(rewards, _REWARD_OF_ROLLOUT)
        .where(rollouts.c.session_id == session_id, example)
        .order_by(rollouts.c.reward_number.desc())
        .limit(limit)
    )
    if candidate_id is not None:
        query = query.where(rollouts.c.candidate_id == candidate_id)
    rows = connection.execute(query).mappings().all()
    if not rows:
        check_session(connection, session_id)
    return tuple(
        ExampleTrace.model_validate({**row, "user": user_of(row["metadata"])}) for row in rows
    )


def rollout_reports(
    connection: Connection, session_id: str, *, order: RolloutOrder, limit: int
) -> tuple[RolloutReport, ...]:
    """Rewarded rollouts: the newest, or the worst of the newest `WORST_OF`."""
    query = (
        select(
            rollouts.c.rollout_id,
            rollouts.c.candidate_id,
            candidates.c.number.label("candidate_number"),
            rollouts.c.reward,
            rewards.c.score,
            rewards.c.feedback,
            rewards.c.expected,
            rollouts.c.example_id,
            func.coalesce(rollouts.c.correlation_id, rewards.c.correlation_id).label(
                "correlation_id"
            ),
            rollouts.c.applied.label("prompt_applied"),
            rollouts.c.failure,
            func.coalesce(traces.c.input, "").label("input"),
            func.coalesce(traces.c.output, "").label("output"),
            rollouts.c.pinned_at,
            rewards.c.received_at.label("rewarded_at"),
        )
        .join_from(rollouts, candidates, candidates.c.candidate_id == rollouts.c.candidate_id)
        .join(rewards, _REWARD_OF_ROLLOUT)
        .outerjoin(traces, traces.c.trace_id == rollouts.c.example_trace_id)
        .where(rollouts.c.session_id == session_id, rewarded)
    )
    if order is RolloutOrder.WORST:
        newest = select(func.max(rollouts.c.reward_number)).where(
            rollouts.c.session_id == session_id, rewarded
        )
        query = query.where(rollouts.c.reward_number > newest.scalar_subquery() - WORST_OF)
        query = query.order_by(rollouts.c.reward)
    query = query.order_by(rollouts.c.reward_number.desc())
    rows = connection.execute(query.limit(limit)).mappings().all()
    if not rows:
        check_session(connection, session_id)
    return tuple(map(RolloutReport.model_validate, rows))


def traces_of(
    connection: Connection, session_id: str, rollout_or_trace_id: str
) -> tuple[Trace, ...]:
    """The calls of a rollout in their order, or the call with that id; empty if none is kept."""
    query = select(traces).where(traces.c.session_id == session_id).order_by(traces.c.position)
    for column in (traces.c.rollout_id, traces.c.trace_id):
        rows = connection.execute(query.where(column == rollout_or_trace_id)).mappings().all()
        if rows:
            return tuple(map(trace_record, rows))
    check_session(connection, session_id)
    return ()


def newest_frames(
    connection: Connection, session_id: str, *, limit: int
) -> tuple[SensorFrame, ...]:
    """The frames of the newest calls and rewards, newest first."""
    found = [
        *_frames_of_calls(connection, session_id, limit),
        *_frames_of_rewards(connection, session_id, limit),
    ]
    if not found:
        check_session(connection, session_id)
    return tuple(sorted(found, key=lambda frame: frame.created_at, reverse=True)[:limit])


def _frames_of_calls(connection: Connection, session_id: str, limit: int) -> Iterator[SensorFrame]:
    told = [column for column in traces.c if column.name not in _TEXTS]
    query = (
        select(*told, *_VERSIONS)
        .join(candidates, candidates.c.candidate_id == traces.c.candidate_id)
        .where(traces.c.session_id == session_id)
        .order_by(traces.c.position.desc())
        .limit(limit)
    )
    for row in connection.execute(query).mappings():
        trace = trace_record({**row, **_TEXTS})
        yield frame_of_call(trace, _versions(session_id, row))


def _frames_of_rewards(
    connection: Connection, session_id: str, limit: int
) -> Iterator[SensorFrame]:
    pinned = rollouts.c.candidate_id.label("pinned_candidate_id")
    query = (
        select(rewards, pinned, *_VERSIONS)
        .join_from(rollouts, rewards, _REWARD_OF_ROLLOUT)
        .join(candidates, candidates.c.candidate_id == rollouts.c.candidate_id)
        .where(rollouts.c.session_id == session_id, rewarded)
        .order_by(rollouts.c.reward_number.desc())
        .limit(limit)
    )
    for row in connection.execute(query).mappings():
        yield frame_of_reward(
            reward_record(row),
            rollout_id=row["rollout_id"],
            candidate_id=row["pinned_candidate_id"],
            versions=_versions(session_id, row),
        )


def _versions(session_id: str, row: RowMapping) -> LeverVersions:
    return lever_versions(session_id, **{column.name: row[column.name] for column in _VERSIONS})


def last_unapplied(connection: Connection, session_id: str) -> str | None:
    """Why the newest call without its candidate's prompt lacks it, if there is such a call."""
    query = (
        select(traces.c.unapplied_reason)
        .where(traces.c.session_id == session_id, unapplied)
        .order_by(traces.c.position.desc())
        .limit(1)
    )
    reason: str | None = connection.scalar(query)
    if reason is None:
        check_session(connection, session_id)
    return reason


def seed_evals(
    connection: Connection, wanted: SeedEvalFilter, *, limit: int, cursor: str | None = None
) -> Page[SeedEval]:
    """A page of rewarded rollouts as seed evals, by session, newest first.

    The seed is the example's id if that is a whole number; a reward from `SUCCESS` on is a success;
    the split is left to callers who know the pools.
    """
    query = (
        select(
            rollouts,
            rewards.c.reward_id,
            rewards.c.score,
            rewards.c.feedback,
            rewards.c.received_at,
        )
        .join_from(rollouts, rewards, _REWARD_OF_ROLLOUT)
        .order_by(rollouts.c.session_id.desc(), rollouts.c.reward_number.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        key = tuple_(rollouts.c.session_id, rollouts.c.reward_number)
        query = query.where(key < decode_cursor(cursor, str, int))
    query = query.where(rewarded, *_conditions(connection, wanted))
    rows = connection.execute(query).mappings().all()
    found = tuple(_seed_eval(row) for row in rows[:limit])
    if len(rows) <= limit:
        return Page(found)
    last = rows[limit - 1]
    return Page(found, encode_cursor(last["session_id"], last["reward_number"]))


def _conditions(connection: Connection, wanted: SeedEvalFilter) -> list[ColumnElement[Any]]:
    """Raises SessionNotFound or CandidateNotFound for an id that nothing has."""
    conditions: list[ColumnElement[Any]] = []
    session_id = wanted.session_id
    if session_id is not None:
        check_session(connection, session_id)
    if wanted.candidate_id is not None:
        owner = connection.scalar(
            select(candidates.c.session_id).where(candidates.c.candidate_id == wanted.candidate_id)
        )
        if owner is None or session_id not in (None, owner):
            raise CandidateNotFound.of(wanted.candidate_id, session_id)
        session_id = owner
        conditions.append(rollouts.c.candidate_id == wanted.candidate_id)
    if session_id is not None:
        conditions.append(rollouts.c.session_id == session_id)
    if wanted.seeds is not None:
        conditions.append(rollouts.c.seed.in_(wanted.seeds))
    if wanted.success is not None:
        succeeded = rollouts.c.reward >= SUCCESS
        conditions.append(succeeded if wanted.success else ~succeeded)
    return conditions


def _seed_eval(row: RowMapping) -> SeedEval:
    return SeedEval(
        seed_eval_id=f"seed_eval_{row['reward_id'].removeprefix('reward_')}",
        candidate_id=row["candidate_id"],
        system_id=row["session_id"],
        rollout_id=row["rollout_id"],
        seed=row["seed"],
        reward=row["reward"],
        avg_reward=row["reward"],
        success=row["reward"] >= SUCCESS,
        metadata={
            "score": row["score"],
            "feedback": row["feedback"],
            "example_id": row["example_id"],
            "correlation_id": row["correlation_id"],
        },
        created_at=row["received_at"],
    )
