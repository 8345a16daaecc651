"""Rewards: counted once, for the rollout they belong to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from prefect_mipro.errors import RewardConflict, RolloutNotFound
from prefect_mipro.models.rollouts import Reward, Rollout
from prefect_mipro.server.store.attachments import attach, insert_rollout, read_reward, read_rollout
from prefect_mipro.server.store.changes import Change, changing, check_candidates, check_session
from prefect_mipro.server.store.records import Attached
from prefect_mipro.server.store.rows import example_key, reward_record, rollout_record
from prefect_mipro.server.store.tables import (
    example_rewards,
    removed_rollouts,
    rewards,
    rollouts,
    unrewarded,
)

_BY_REQUEST_KEY = select(rewards).where(
    rewards.c.session_id == bindparam("of_session"), rewards.c.request_key == bindparam("key")
)
_REMOVED = select(removed_rollouts.c.candidate_id).where(
    removed_rollouts.c.session_id == bindparam("of_session"),
    removed_rollouts.c.rollout_id == bindparam("of_rollout"),
)
_OF_EXAMPLE = select(example_rewards.c.rewards, example_rewards.c.deviation_sum).where(
    example_rewards.c.session_id == bindparam("of_session"),
    example_rewards.c.example_key == bindparam("key"),
)


def add(connection: Connection, reward: Reward, *, request_key: str | None = None) -> Attached:
    """Count a reward once.

    With a rollout id: the same score again is a duplicate, another score a RewardConflict; the
    reward of an unknown rollout waits, unless it names a candidate, which then pins the rollout; a
    candidate other than the rollout's own is a RewardConflict. Without a rollout id: the reward
    goes to the newest unrewarded rollout of its correlation id and candidate, where it names them.
    Raises RolloutNotFound if there is none. A `request_key` seen before returns what it did then.

    Attaching adds to the statistics of the candidate and of the duel, to the reward blocks and to
    the rewards of the example, and inserts a sensor frame of kind `reward`. The reward's example id
    is used if the rollout has none. The reward of a rollout that is no evidence is kept, and added
    to nothing.
    """
    with changing(connection, reward.session_id) as change:
        repeated = _repeated(connection, reward, request_key) or _removed(change, reward)
        if repeated is not None:
            known = read_rollout(connection, reward.session_id, repeated.rollout_id or "")
            return Attached(repeated, duplicate=True, applied=known.applied if known else None)
        rollout = _rollout_of(change, reward)
        if rollout is not None:
            owner = {"rollout_id": rollout.rollout_id, "candidate_id": rollout.candidate_id}
            reward = reward.model_copy(update=owner)
        _insert(change, reward, request_key)
        if rollout is None:
            return Attached(reward, duplicate=False)
        attach(change, rollout, reward)
        return Attached(reward, duplicate=False, applied=rollout.applied)


def of_example(connection: Connection, session_id: str, example_id: str) -> tuple[int, float]:
    """How often an example was rewarded, and the sum of its deviations; (0, 0.0) if never.

    A deviation is a reward less the mean of its candidate before it.
    """
    of = {"of_session": session_id, "key": example_key(example_id)}
    row = connection.execute(_OF_EXAMPLE, of).first()
    if row is None:
        check_session(connection, session_id)
        return 0, 0.0
    return row.rewards, row.deviation_sum


def _repeated(connection: Connection, reward: Reward, request_key: str | None) -> Reward | None:
    """The stored reward that this one says again. Raises RewardConflict."""
    if request_key is not None:
        of = {"of_session": reward.session_id, "key": request_key}
        row = connection.execute(_BY_REQUEST_KEY, of).mappings().first()
        if row is not None:
            return reward_record(row)
    if reward.rollout_id is None:
        return None
    stored = read_reward(connection, reward.session_id, reward.rollout_id)
    if stored is None:
        return None
    if stored.candidate_id is not None:
        _check_candidate(connection, reward, stored.candidate_id)
    if stored.score != reward.score:
        raise RewardConflict(
            f"rollout {reward.rollout_id!r} has the reward {stored.score:g} already, "
            f"so {reward.score:g} is not counted; a rollout is rewarded once"
        )
    return stored


def _removed(change: Change, reward: Reward) -> Reward | None:
    """The reward as that of a rollout which had one, and was removed. Raises RewardConflict."""
    if reward.rollout_id is None or not change["removed_rollouts"]:
        return None
    of = {"of_session": reward.session_id, "of_rollout": reward.rollout_id}
    row = change.connection.execute(_REMOVED, of).first()
    if row is None or read_rollout(change.connection, reward.session_id, reward.rollout_id):
        return None
    if row.candidate_id is None:
        raise RewardConflict(
            f"rollout {reward.rollout_id!r} was removed without a reward, because of its age or "
            "at a request; its reward comes too late and is not counted"
        )
    _check_candidate(change.connection, reward, row.candidate_id)
    return reward.model_copy(update={"candidate_id": row.candidate_id})


def _rollout_of(change: Change, reward: Reward) -> Rollout | None:
    """The rollout it belongs to, pinned here if need be; `None` while it must wait."""
    connection = change.connection
    if reward.rollout_id is None:
        return _newest_unrewarded(connection, reward)
    rollout = read_rollout(connection, reward.session_id, reward.rollout_id)
    if rollout is not None:
        _check_candidate(connection, reward, rollout.candidate_id)
        return rollout
    if reward.candidate_id is None:
        return None
    rollout = Rollout(
        session_id=reward.session_id,
        rollout_id=reward.rollout_id,
        candidate_id=reward.candidate_id,
        correlation_id=reward.correlation_id,
        example_id=reward.example_id,
        pinned_at=reward.received_at,
    )
    return insert_rollout(change, rollout)


def _newest_unrewarded(connection: Connection, reward: Reward) -> Rollout:
    """Of the reward's correlation id and candidate, where it names them."""
    named: dict[Any, str | None] = {
        rollouts.c.correlation_id: reward.correlation_id,
        rollouts.c.candidate_id: reward.candidate_id,
    }
    if reward.candidate_id is not None:
        check_candidates(connection, reward.session_id, reward.candidate_id)
    query = (
        select(rollouts)
        .where(
            rollouts.c.session_id == reward.session_id,
            unrewarded,
            *(column == value for column, value in named.items() if value is not None),
        )
        .order_by(rollouts.c.position.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    if row is None:
        of_what = " and ".join(
            f"{column.name} {value!r}" for column, value in named.items() if value is not None
        )
        raise RolloutNotFound(
            f"session {reward.session_id!r} has no rollout without a reward"
            + (f" of {of_what}" if of_what else "")
            + "; name the rollout with rollout_id"
        )
    return rollout_record(row)


def _check_candidate(connection: Connection, reward: Reward, candidate_id: str) -> None:
    """Raise unless the reward names this candidate, or none."""
    if reward.candidate_id in (None, candidate_id):
        return
    check_candidates(connection, reward.session_id, str(reward.candidate_id))
    raise RewardConflict(
        f"rollout {reward.rollout_id!r} ran with {candidate_id!r}, "
        f"not with {reward.candidate_id!r}; leave candidate_id out, or name the right one"
    )


def _insert(change: Change, reward: Reward, request_key: str | None) -> None:
    change.connection.execute(insert(rewards), {**dict(reward), "request_key": request_key})
    waits = reward.candidate_id is None
    change.record(
        "mipro.reward.received",
        f"reward {reward.score:g} for rollout {reward.rollout_id}"
        + (", which is not known yet" if waits else ""),
        data={
            "reward_id": reward.reward_id,
            "rollout_id": reward.rollout_id,
            "score": reward.score,
            "value": reward.value,
            "attached": not waits,
        },
        at=reward.received_at,
    )
