"""What a pin and a reward do to the counters, shared by those who pin and those who reward."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Text,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from prefect_mipro.models.levers import LeverName, lever_id, prompt_lever_id
from prefect_mipro.models.rollouts import Reward, Rollout
from prefect_mipro.models.sensors import Sensor, SensorFrame, SensorKind
from prefect_mipro.server.store.changes import Change, candidate_missing
from prefect_mipro.server.store.rows import (
    Values,
    frame_values,
    reward_record,
    rollout_record,
    rollout_values,
    seed_of,
)
from prefect_mipro.server.store.tables import (
    candidates,
    duels,
    frames,
    reward_blocks,
    rewards,
    rollouts,
)

# At this many blocks two become one, so that a status costs the same after millions of rewards.
LARGEST_BLOCK_COUNT = 256

# What every call and reward runs is built once: building costs more than running.
_SESSION = bindparam("of_session", type_=Text)
_ROLLOUT = bindparam("of_rollout", type_=Text)
_CANDIDATE = bindparam("of_candidate", type_=Text)
_DUEL = bindparam("of_duel", type_=BigInteger)
_BLOCK = bindparam("of_block", type_=BigInteger)
_VALUE = bindparam("earned", type_=Double)

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
_REWARD_ROLLOUT = update(rollouts).where(
    rollouts.c.session_id == _SESSION, rollouts.c.rollout_id == _ROLLOUT
)
_REWARD_CANDIDATE = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(
        rewards=candidates.c.rewards + 1,
        reward_sum=candidates.c.reward_sum + _VALUE,
        reward_square_sum=candidates.c.reward_square_sum + _VALUE * _VALUE,
    )
    .returning(
        candidates.c.instruction_version, candidates.c.demonstrations_version, candidates.c.number
    )
)
_REWARD_DUEL = (
    update(duels)
    .where(duels.c.session_id == _SESSION, duels.c.number == _DUEL)
    .values(rewards=duels.c.rewards + 1, reward_sum=duels.c.reward_sum + _VALUE)
)
_REWARD_BLOCK = (
    update(reward_blocks)
    .where(reward_blocks.c.session_id == _SESSION, reward_blocks.c.block == _BLOCK)
    .values(
        last=reward_blocks.c.last + 1,
        rewards=reward_blocks.c.rewards + 1,
        reward_sum=reward_blocks.c.reward_sum + _VALUE,
    )
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


def insert_rollout(change: Change, rollout: Rollout) -> None:
    """Insert it and count it for its session, candidate and duel."""
    connection, of = change.connection, _of(rollout)
    counted = connection.execute(_COUNT_ROLLOUT, of)
    if not counted.rowcount:
        raise candidate_missing(rollout.candidate_id, rollout.session_id)
    position = change["rollouts"] + 1
    change.set(rollouts=position)
    connection.execute(insert(rollouts), rollout_values(rollout, position=position))
    if rollout.duel_number is not None:
        connection.execute(_COUNT_DUEL_ROLLOUT, of)


def attach(change: Change, rollout: Rollout, reward: Reward) -> Rollout:
    """Count the reward for its rollout, candidate and duel, and in the blocks; tell of it.

    Returns the rollout with it.
    """
    connection, value = change.connection, reward.value
    of = {**_of(rollout), "earned": value}
    number = change["rewards"] + 1
    change.set(rewards=number)
    example_id = reward.example_id if rollout.example_id is None else rollout.example_id
    rewarded = rollout.model_copy(update={"reward": value, "example_id": example_id})
    connection.execute(
        _REWARD_ROLLOUT,
        {
            "of_session": rollout.session_id,
            "of_rollout": rollout.rollout_id,
            "reward": value,
            "reward_number": number,
            "example_id": example_id,
            "seed": seed_of(example_id),
        },
    )
    versions = connection.execute(_REWARD_CANDIDATE, of).one()
    if rollout.duel_number is not None:
        connection.execute(_REWARD_DUEL, of)
    _count_in_block(change, number, value)
    connection.execute(insert(frames), frame_values(_frame(rollout, reward, *versions)))
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


def _count_in_block(change: Change, number: int, value: float) -> None:
    length = change["reward_block_length"]
    block, opened = divmod(number - 1, length)
    if block == LARGEST_BLOCK_COUNT:
        _halve_blocks(change)
        block //= 2
        change.set(reward_block_length=2 * length)
    if opened:
        change.connection.execute(
            _REWARD_BLOCK,
            {"of_session": change.session_id, "of_block": block, "earned": value},
        )
    else:
        change.connection.execute(
            insert(reward_blocks),
            {
                "session_id": change.session_id,
                "block": block,
                "last": number,
                "rewards": 1,
                "reward_sum": value,
            },
        )


def _halve_blocks(change: Change) -> None:
    """Make one block of each two."""
    mine = reward_blocks.c.session_id == change.session_id
    query = select(reward_blocks).where(mine).order_by(reward_blocks.c.block)
    rows = (change.connection.execute(query)).mappings().all()
    change.connection.execute(delete(reward_blocks).where(mine))
    change.connection.execute(
        insert(reward_blocks),
        [
            {
                "session_id": change.session_id,
                "block": left["block"] // 2,
                "last": right["last"],
                "rewards": left["rewards"] + right["rewards"],
                "reward_sum": left["reward_sum"] + right["reward_sum"],
            }
            for left, right in zip(rows[::2], rows[1::2], strict=True)
        ],
    )


def _frame(
    rollout: Rollout, reward: Reward, instruction: int, demonstrations: int, number: int
) -> SensorFrame:
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
            lever_id(rollout.session_id, LeverName.INSTRUCTION): instruction,
            lever_id(rollout.session_id, LeverName.DEMONSTRATIONS): demonstrations,
            prompt_lever_id(rollout.session_id): number,
        },
        trace_ids=() if reward.trace_ref is None else (reward.trace_ref,),
    )
