"""What pins, rewards, and the news whether a prompt was applied do to the counters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Double,
    Row,
    Text,
    bindparam,
    insert,
    null,
    select,
    update,
)

from prefect_mipro.errors import CandidateNotFound
from prefect_mipro.models.levers import LeverName, lever_id, prompt_lever_id
from prefect_mipro.models.rollouts import Reward, Rollout
from prefect_mipro.models.sensors import Sensor, SensorFrame, SensorKind
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.server.store.blocks import count_reward, make_room
from prefect_mipro.server.store.changes import Change
from prefect_mipro.server.store.database import add_to_row
from prefect_mipro.server.store.rows import (
    Values,
    example_key,
    frame_values,
    reward_record,
    rollout_record,
    rollout_values,
    seed_of,
)
from prefect_mipro.server.store.tables import (
    candidates,
    duels,
    example_rewards,
    frames,
    rewards,
    rollouts,
)

# What every call and reward runs is built once: building costs more than running.
_SESSION = bindparam("of_session", type_=Text)
_ROLLOUT = bindparam("of_rollout", type_=Text)
_CANDIDATE = bindparam("of_candidate", type_=Text)
_DUEL = bindparam("of_duel", type_=BigInteger)
_VALUE = bindparam("earned", type_=Double)
_MISSING = bindparam("missing_now", type_=BigInteger)
_UNAPPLIED = bindparam("unapplied_now", type_=BigInteger)
_TIMES = bindparam("times", type_=BigInteger)  # -1 takes back

_SELECT_ROLLOUT = select(rollouts).where(
    rollouts.c.session_id == _SESSION, rollouts.c.rollout_id == _ROLLOUT
)
_SELECT_REWARD = select(rewards).where(
    rewards.c.session_id == _SESSION, rewards.c.rollout_id == _ROLLOUT
)
_COUNT_ROLLOUT = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE, candidates.c.session_id == _SESSION)
    .values(
        rollouts=candidates.c.rollouts + 1,
        unapplied_rollouts=candidates.c.unapplied_rollouts + _UNAPPLIED,
    )
)
_COUNT_DUEL_ROLLOUT = (
    update(duels)
    .where(duels.c.session_id == _SESSION, duels.c.number == _DUEL)
    .values(rollouts=duels.c.rollouts + _TIMES)
)
_UPDATE_ROLLOUT = update(rollouts).where(
    rollouts.c.session_id == _SESSION, rollouts.c.rollout_id == _ROLLOUT
)
_SET_APPLIED = _UPDATE_ROLLOUT.values(applied=bindparam("applied_now", type_=Boolean))
_TAKE_FAILURE_BACK = _UPDATE_ROLLOUT.values(
    failure=None, failed_candidate_id=None, failure_shares=null()
)
_COUNT_FAILURE_BACK = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(failures=candidates.c.failures - 1)
)
_COUNT_AS_EVIDENCE = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(
        unapplied_rollouts=candidates.c.unapplied_rollouts - _TIMES,
        missing=candidates.c.missing + _MISSING,
    )
)
_VERSIONS = (
    candidates.c.instruction_version,
    candidates.c.demonstrations_version,
    candidates.c.number,
)
_SELECT_VERSIONS = select(*_VERSIONS).where(candidates.c.candidate_id == _CANDIDATE)
_REWARD_CANDIDATE = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(
        rewards=candidates.c.rewards + _TIMES,
        missing=candidates.c.missing + _MISSING,
        reward_sum=candidates.c.reward_sum + _TIMES * _VALUE,
        reward_square_sum=candidates.c.reward_square_sum + _TIMES * _VALUE * _VALUE,
    )
    .returning(*_VERSIONS, candidates.c.rewards, candidates.c.reward_sum)
)
_REWARD_DUEL = (
    update(duels)
    .where(duels.c.session_id == _SESSION, duels.c.number == _DUEL)
    .values(rewards=duels.c.rewards + _TIMES, reward_sum=duels.c.reward_sum + _TIMES * _VALUE)
)


def read_rollout(connection: Connection, session_id: str, rollout_id: str) -> Rollout | None:
    of = {"of_session": session_id, "of_rollout": rollout_id}
    row = connection.execute(_SELECT_ROLLOUT, of).mappings().first()
    return None if row is None else rollout_record(row)


def read_reward(connection: Connection, session_id: str, rollout_id: str) -> Reward | None:
    """The reward of a rollout, attached or waiting for it."""
    of = {"of_session": session_id, "of_rollout": rollout_id}
    row = connection.execute(_SELECT_REWARD, of).mappings().first()
    return None if row is None else reward_record(row)


def insert_rollout(change: Change, rollout: Rollout) -> Rollout:
    """Insert it and count it for its session, candidate and duel. Returns it with its position."""
    connection, of = change.connection, _of(rollout)
    counted = connection.execute(_COUNT_ROLLOUT, {**of, "unapplied_now": not rollout.is_evidence})
    if not counted.rowcount:
        raise CandidateNotFound.of(rollout.candidate_id, rollout.session_id)
    place = {"position": change["rollouts"] + 1, "epoch": change["epoch"]}
    change.set(rollouts=place["position"])
    connection.execute(insert(rollouts), rollout_values(rollout, **place))
    if rollout.duel_number is not None and rollout.is_evidence:
        connection.execute(_COUNT_DUEL_ROLLOUT, {**of, "times": 1})
    make_room(change)
    return rollout.model_copy(update={**place, "reward": None})


def attach(change: Change, rollout: Rollout, reward: Reward) -> Rollout:
    """Count the reward for all whom it concerns, and tell of it. Returns the rollout with it."""
    connection, value = change.connection, reward.value
    number = change["rewards"] + 1
    change.set(rewards=number)
    late = rollout.given_up_at is not None
    if late:
        change.set(missing=change["missing"] - 1)
    example_id = reward.example_id if rollout.example_id is None else rollout.example_id
    rewarded = rollout.model_copy(update={"reward": value, "example_id": example_id})
    deviations: Values = {}
    if rollout.failure is not None and not (late or rollout.fell_back) and value > 0.0:
        # The caller could use the answer.
        of_rollout = {"of_session": rollout.session_id, "of_rollout": rollout.rollout_id}
        connection.execute(_TAKE_FAILURE_BACK, of_rollout)
        connection.execute(_COUNT_FAILURE_BACK, _of(rollout))
    if rollout.is_evidence:
        versions, deviations = _count_reward(change, rewarded, missing_now=-int(late))
    else:
        versions = connection.execute(_SELECT_VERSIONS, _of(rollout)).one()
    connection.execute(
        _UPDATE_ROLLOUT,
        {
            "of_session": rollout.session_id,
            "of_rollout": rollout.rollout_id,
            "reward": value,
            "reward_number": number,
            "example_id": example_id,
            "seed": seed_of(example_id),
            **deviations,
        },
    )
    connection.execute(insert(frames), frame_values(_frame(rollout, reward, versions)))
    earned = f"rollout {rollout.rollout_id} of {rollout.candidate_id} earned {value:g}"
    data = {
        "rollout_id": rollout.rollout_id,
        "candidate_id": rollout.candidate_id,
        "reward": value,
    }
    if not rollout.is_evidence:
        earned += ", which does not count: it ran without the candidate's prompt"
        data["prompt_applied"] = False
    change.record("mipro.rollout.complete", earned, data=data, at=reward.received_at)
    return rewarded


def count_duel_reward(connection: Connection, rollout: Rollout, value: float) -> None:
    """Add what the rollout counts for in its duel."""
    connection.execute(_REWARD_DUEL, {**_of(rollout), "earned": value, "times": 1})


def tell_applied(change: Change, rollout_id: str, applied: bool) -> None:
    """Learn whether a call of the rollout had its candidate's prompt. One that had it is enough.

    The rollout becomes evidence, or ceases to be, with the reward that it may have already.
    """
    connection = change.connection
    of_rollout = {"of_session": change.session_id, "of_rollout": rollout_id}
    row = connection.execute(_SELECT_ROLLOUT, of_rollout).mappings().one()
    rollout = rollout_record(row)
    if rollout.applied or rollout.applied is applied:
        return
    connection.execute(_SET_APPLIED, {**of_rollout, "applied_now": applied})
    if rollout.is_evidence is applied:
        return
    times = 1 if applied else -1
    missing = rollout.given_up_at is not None and rollout.reward is None
    of = {**_of(rollout), "times": times, "missing_now": times * missing}
    connection.execute(_COUNT_AS_EVIDENCE, of)
    if rollout.duel_number is not None:
        connection.execute(_COUNT_DUEL_ROLLOUT, of)
    if rollout.reward is None:
        return
    if applied:
        _, deviations = _count_reward(change, rollout)
        connection.execute(_UPDATE_ROLLOUT, {**of_rollout, **deviations})
    else:
        _take_reward_back(
            change,
            rollout,
            deviation=row["deviation"] or 0.0,
            expected_deviation=row["expected_deviation"] or 0.0,
        )


def _of(rollout: Rollout) -> Values:
    """Whose counters a statement is to change."""
    return {
        "of_session": rollout.session_id,
        "of_candidate": rollout.candidate_id,
        "of_duel": rollout.duel_number,
    }


def _count_reward(
    change: Change, rollout: Rollout, *, missing_now: int = 0
) -> tuple[Row[Any], Values]:
    """Count it as evidence: for candidate, duel, example and block.

    Returns the candidate's versions, and what was added for example and block.
    """
    assert rollout.reward is not None
    counted = _add_reward(change, rollout, times=1, missing_now=missing_now)
    deviation = _deviation(
        rollout.reward,
        rewards=counted.rewards - 1,
        reward_sum=counted.reward_sum - rollout.reward,
    )
    expected = _count_for_example(change, rollout.example_id, deviation)
    # Chance did not choose who answers after a fallback: the harder inputs fail.
    if not rollout.fell_back:
        _add_to_block(change, rollout, expected_deviation=expected, times=1)
    return counted, {"deviation": deviation, "expected_deviation": expected}


def _take_reward_back(
    change: Change, rollout: Rollout, *, deviation: float, expected_deviation: float
) -> None:
    """Undo what `_count_reward` did."""
    _add_reward(change, rollout, times=-1)
    if rollout.example_id is not None:
        _add_to_example(change, rollout.example_id, -deviation, times=-1)
    _add_to_block(change, rollout, expected_deviation=expected_deviation, times=-1)


def _add_reward(change: Change, rollout: Rollout, *, times: int, missing_now: int = 0) -> Row[Any]:
    of = {
        **_of(rollout),
        "earned": rollout.reward,
        "times": times,
        "missing_now": missing_now,
    }
    # One that comes late is no observation of its duel, and one that fell back has been counted.
    in_time = rollout.given_up_at is None and not rollout.fell_back
    if rollout.duel_number is not None and in_time:
        change.connection.execute(_REWARD_DUEL, of)
    return change.connection.execute(_REWARD_CANDIDATE, of).one()


def _add_to_block(
    change: Change, rollout: Rollout, *, expected_deviation: float, times: int
) -> None:
    assert rollout.position is not None
    assert rollout.reward is not None
    count_reward(
        change,
        epoch=rollout.epoch,
        position=rollout.position,
        candidate_id=rollout.candidate_id,
        value=rollout.reward,
        expected_deviation=expected_deviation,
        times=times,
    )


def _deviation(value: float, *, rewards: int, reward_sum: float) -> float:
    """How far a reward is from its candidate's mean before it, which leans to the middle."""
    return value - (reward_sum + 1) / (rewards + 2)


def _count_for_example(change: Change, example_id: str | None, deviation: float) -> float:
    """Returns the deviation that was to be expected of the example before."""
    if example_id is None:
        return 0.0
    counted = _add_to_example(change, example_id, deviation, times=1)
    return expected_deviation(counted.rewards - 1, counted.deviation_sum - deviation)


def _add_to_example(change: Change, example_id: str, deviation: float, *, times: int) -> Row[Any]:
    return add_to_row(
        change.connection,
        example_rewards,
        {
            "session_id": change.session_id,
            "example_key": example_key(example_id),
            "rewards": times,
            "deviation_sum": deviation,
        },
    )


def _frame(rollout: Rollout, reward: Reward, versions: Row[Any]) -> SensorFrame:
    sensor = Sensor(
        name="reward",
        kind=SensorKind.REWARD,
        value=reward.value,
        metadata={"score": reward.score, "reward_id": reward.reward_id},
    )
    return SensorFrame(
        frame_id=f"frame_{reward.reward_id.removeprefix('reward_')}",
        session_id=rollout.session_id,
        rollout_id=rollout.rollout_id,
        candidate_id=rollout.candidate_id,
        created_at=reward.received_at,
        sensors=(sensor,),
        lever_versions={
            lever_id(rollout.session_id, LeverName.INSTRUCTION): versions.instruction_version,
            lever_id(rollout.session_id, LeverName.DEMONSTRATIONS): versions.demonstrations_version,
            prompt_lever_id(rollout.session_id): versions.number,
        },
        trace_ids=() if reward.trace_ref is None else (reward.trace_ref,),
    )
