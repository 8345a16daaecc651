"""What a pin and a reward do to the counters, shared by those who pin and those who reward."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Row,
    Text,
    bindparam,
    insert,
    select,
    update,
)

from prefect_mipro.models.levers import LeverName, lever_id, prompt_lever_id
from prefect_mipro.models.rollouts import Reward, Rollout
from prefect_mipro.models.sensors import Sensor, SensorFrame, SensorKind
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.server.store.blocks import count_reward, make_room
from prefect_mipro.server.store.changes import Change, candidate_missing
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
_LATE = bindparam("late", type_=BigInteger)

_SELECT_ROLLOUT = select(rollouts).where(
    rollouts.c.session_id == _SESSION, rollouts.c.rollout_id == _ROLLOUT
)
_SELECT_REWARD = select(rewards).where(
    rewards.c.session_id == _SESSION, rewards.c.rollout_id == _ROLLOUT
)
_COUNT_ROLLOUT = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE, candidates.c.session_id == _SESSION)
    .values(rollouts=candidates.c.rollouts + 1)
)
_COUNT_DUEL_ROLLOUT = (
    update(duels)
    .where(duels.c.session_id == _SESSION, duels.c.number == _DUEL)
    .values(rollouts=duels.c.rollouts + 1)
)
_REWARD_ROLLOUT = (
    update(rollouts)
    .where(rollouts.c.session_id == _SESSION, rollouts.c.rollout_id == _ROLLOUT)
    .returning(rollouts.c.epoch, rollouts.c.position, rollouts.c.given_up_at)
)
_REWARD_CANDIDATE = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(
        rewards=candidates.c.rewards + 1,
        missing=candidates.c.missing - _LATE,
        reward_sum=candidates.c.reward_sum + _VALUE,
        reward_square_sum=candidates.c.reward_square_sum + _VALUE * _VALUE,
    )
    .returning(
        candidates.c.instruction_version,
        candidates.c.demonstrations_version,
        candidates.c.number,
        candidates.c.rewards,
        candidates.c.reward_sum,
    )
)
_REWARD_DUEL = (
    update(duels)
    .where(duels.c.session_id == _SESSION, duels.c.number == _DUEL)
    .values(rewards=duels.c.rewards + 1, reward_sum=duels.c.reward_sum + _VALUE)
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
    counted = connection.execute(_COUNT_ROLLOUT, of)
    if not counted.rowcount:
        raise candidate_missing(rollout.candidate_id, rollout.session_id)
    position = change["rollouts"] + 1
    change.set(rollouts=position)
    values = rollout_values(rollout, position=position, epoch=change["epoch"])
    connection.execute(insert(rollouts), values)
    if rollout.duel_number is not None:
        connection.execute(_COUNT_DUEL_ROLLOUT, of)
    make_room(change)
    return rollout.model_copy(update={"position": position, "reward": None})


def attach(change: Change, rollout: Rollout, reward: Reward) -> Rollout:
    """Count the reward for all whom it concerns, and tell of it. Returns the rollout with it."""
    connection, value = change.connection, reward.value
    number = change["rewards"] + 1
    change.set(rewards=number)
    example_id = reward.example_id if rollout.example_id is None else rollout.example_id
    rewarded = rollout.model_copy(update={"reward": value, "example_id": example_id})
    pinned = connection.execute(
        _REWARD_ROLLOUT,
        {
            "of_session": rollout.session_id,
            "of_rollout": rollout.rollout_id,
            "reward": value,
            "reward_number": number,
            "example_id": example_id,
            "seed": seed_of(example_id),
        },
    ).one()
    late = pinned.given_up_at is not None
    of = {**_of(rollout), "earned": value, "late": int(late)}
    if late:
        change.set(missing=change["missing"] - 1)
    elif rollout.duel_number is not None:
        connection.execute(_REWARD_DUEL, of)
    counted = connection.execute(_REWARD_CANDIDATE, of).one()
    deviation = _deviation(
        value, rewards=counted.rewards - 1, reward_sum=counted.reward_sum - value
    )
    count_reward(
        change,
        epoch=pinned.epoch,
        position=pinned.position,
        candidate_id=rollout.candidate_id,
        value=value,
        expected_deviation=_count_for_example(change, example_id, deviation),
    )
    connection.execute(insert(frames), frame_values(_frame(rollout, reward, counted)))
    change.record(
        "mipro.rollout.complete",
        f"rollout {rollout.rollout_id} of {rollout.candidate_id} earned {value:g}",
        data={
            "rollout_id": rollout.rollout_id,
            "candidate_id": rollout.candidate_id,
            "reward": value,
        },
        at=reward.received_at,
    )
    return rewarded


def _of(rollout: Rollout) -> Values:
    """Whose counters a statement is to change."""
    return {
        "of_session": rollout.session_id,
        "of_candidate": rollout.candidate_id,
        "of_duel": rollout.duel_number,
    }


def _deviation(value: float, *, rewards: int, reward_sum: float) -> float:
    """How far a reward is from its candidate's mean before it, which leans to the middle."""
    return value - (reward_sum + 1) / (rewards + 2)


def _count_for_example(change: Change, example_id: str | None, deviation: float) -> float:
    """Returns the deviation that was to be expected of the example before."""
    if example_id is None:
        return 0.0
    counted = add_to_row(
        change.connection,
        example_rewards,
        {
            "session_id": change.session_id,
            "example_key": example_key(example_id),
            "rewards": 1,
            "deviation_sum": deviation,
        },
    )
    return expected_deviation(counted.rewards - 1, counted.deviation_sum - deviation)


def _frame(rollout: Rollout, reward: Reward, counted: Row[Any]) -> SensorFrame:
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
            lever_id(rollout.session_id, LeverName.INSTRUCTION): counted.instruction_version,
            lever_id(rollout.session_id, LeverName.DEMONSTRATIONS): counted.demonstrations_version,
            prompt_lever_id(rollout.session_id): counted.number,
        },
        trace_ids=() if reward.trace_ref is None else (reward.trace_ref,),
    )
