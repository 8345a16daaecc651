"""What a pin and a reward do to the counters, shared by those who pin and those who reward."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from prefect_mipro.models.levers import LeverName, LeverVersions, lever_id, prompt_lever_id
from prefect_mipro.models.rollouts import Reward, Rollout
from prefect_mipro.models.sensors import Sensor, SensorFrame, SensorKind
from prefect_mipro.server.store.changes import Change, candidate_missing
from prefect_mipro.server.store.rows import (
    frame_values,
    rollout_record,
    rollout_values,
    seed_of,
)
from prefect_mipro.server.store.tables import candidates, duels, frames, reward_blocks, rollouts

# At this many blocks two become one, so that a status costs the same after millions of rewards.
LARGEST_BLOCK_COUNT = 512


def read_rollout(connection: Connection, session_id: str, rollout_id: str) -> Rollout | None:
    query = select(rollouts).where(
        rollouts.c.session_id == session_id, rollouts.c.rollout_id == rollout_id
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else rollout_record(row)


def insert_rollout(change: Change, rollout: Rollout) -> None:
    """Insert it and count it for its session, candidate and duel."""
    counted = change.connection.execute(
        update(candidates)
        .where(
            candidates.c.candidate_id == rollout.candidate_id,
            candidates.c.session_id == rollout.session_id,
        )
        .values(rollouts=candidates.c.rollouts + 1)
    )
    if not counted.rowcount:
        raise candidate_missing(rollout.candidate_id, rollout.session_id)
    position = change["rollouts"] + 1
    change.set(rollouts=position)
    change.connection.execute(insert(rollouts), rollout_values(rollout, position=position))
    if rollout.duel_number is not None:
        change.connection.execute(
            update(duels)
            .where(duels.c.session_id == rollout.session_id, duels.c.number == rollout.duel_number)
            .values(rollouts=duels.c.rollouts + 1)
        )


def attach(change: Change, rollout: Rollout, reward: Reward) -> Rollout:
    """Count the reward for its rollout, candidate and duel, and in the blocks; tell of it.

    Returns the rollout with it.
    """
    connection, value = change.connection, reward.value
    number = change["rewards"] + 1
    change.set(rewards=number)
    example_id = reward.example_id if rollout.example_id is None else rollout.example_id
    rewarded = rollout.model_copy(update={"reward": value, "example_id": example_id})
    connection.execute(
        update(rollouts)
        .where(
            rollouts.c.session_id == rollout.session_id,
            rollouts.c.rollout_id == rollout.rollout_id,
        )
        .values(reward=value, reward_number=number, example_id=example_id, seed=seed_of(example_id))
    )
    versions = _count_for_candidate(change, rollout, value)
    if rollout.duel_number is not None:
        connection.execute(
            update(duels)
            .where(duels.c.session_id == rollout.session_id, duels.c.number == rollout.duel_number)
            .values(rewards=duels.c.rewards + 1, reward_sum=duels.c.reward_sum + value)
        )
    _count_in_block(change, number, value)
    connection.execute(insert(frames), frame_values(_frame(rollout, reward, versions)))
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


def _count_for_candidate(change: Change, rollout: Rollout, value: float) -> LeverVersions:
    """Add to the candidate's sums; the versions of its levers."""
    columns = candidates.c
    counted = change.connection.execute(
        update(candidates)
        .where(columns.candidate_id == rollout.candidate_id)
        .values(
            rewards=columns.rewards + 1,
            reward_sum=columns.reward_sum + value,
            reward_square_sum=columns.reward_square_sum + value * value,
        )
        .returning(columns.instruction_version, columns.demonstrations_version, columns.number)
    )
    instruction, demonstrations, number = counted.one()
    return {
        lever_id(change.session_id, LeverName.INSTRUCTION): instruction,
        lever_id(change.session_id, LeverName.DEMONSTRATIONS): demonstrations,
        prompt_lever_id(change.session_id): number,
    }


def _count_in_block(change: Change, number: int, value: float) -> None:
    length = change["reward_block_length"]
    block, opened = divmod(number - 1, length)
    if block == LARGEST_BLOCK_COUNT:
        _halve_blocks(change)
        block //= 2
        change.set(reward_block_length=2 * length)
    columns = reward_blocks.c
    if opened:
        change.connection.execute(
            update(reward_blocks)
            .where(columns.session_id == change.session_id, columns.block == block)
            .values(last=number, rewards=columns.rewards + 1, reward_sum=columns.reward_sum + value)
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


def _frame(rollout: Rollout, reward: Reward, versions: LeverVersions) -> SensorFrame:
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
        lever_versions=versions,
        trace_ids=() if reward.trace_ref is None else (reward.trace_ref,),
    )
