"""Rewards: counted once, for their rollout, its candidate, duel, block and example."""

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

from prefect_mipro.errors import CandidateNotFound, RewardConflict, RolloutNotFound
from prefect_mipro.models.rollouts import Reward, Rollout
from prefect_mipro.optimizer.examples import expected_deviation
from prefect_mipro.server.store.blocks import count_reward, make_room
from prefect_mipro.server.store.changes import Change, changing, check_candidates, check_session
from prefect_mipro.server.store.database import add_to_row
from prefect_mipro.server.store.records import Attached
from prefect_mipro.server.store.rows import (
    Values,
    example_key,
    reward_record,
    rollout_record,
    rollout_values,
    seed_of,
)
from prefect_mipro.server.store.schema import (
    candidates,
    duels,
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
_REWARD_CANDIDATE = (
    update(candidates)
    .where(candidates.c.candidate_id == _CANDIDATE)
    .values(
        rewards=candidates.c.rewards + _TIMES,
        missing=candidates.c.missing + _MISSING,
        reward_sum=candidates.c.reward_sum + _TIMES * _VALUE,
        reward_square_sum=candidates.c.reward_square_sum + _TIMES * _VALUE * _VALUE,
    )
    .returning(candidates.c.rewards, candidates.c.reward_sum)
)
_REWARD_DUEL = (
    update(duels)
    .where(duels.c.session_id == _SESSION, duels.c.number == _DUEL)
    .values(rewards=duels.c.rewards + _TIMES, reward_sum=duels.c.reward_sum + _TIMES * _VALUE)
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
    """The reward of a rollout that had one before it was removed. Raises RewardConflict."""
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
    """The newest unrewarded rollout of the reward's correlation id and candidate, if named."""
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
    """Count the reward everywhere, and record its event. Returns the rollout with the reward."""
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
        deviations = _count_reward(change, rewarded, missing_now=-int(late))
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
        deviations = _count_reward(change, rollout)
        connection.execute(_UPDATE_ROLLOUT, {**of_rollout, **deviations})
    else:
        _take_reward_back(
            change,
            rollout,
            deviation=row["deviation"] or 0.0,
            expected_deviation=row["expected_deviation"] or 0.0,
        )


def _of(rollout: Rollout) -> Values:
    """The keys of the counters that a statement changes."""
    return {
        "of_session": rollout.session_id,
        "of_candidate": rollout.candidate_id,
        "of_duel": rollout.duel_number,
    }


def _count_reward(change: Change, rollout: Rollout, *, missing_now: int = 0) -> Values:
    """Count the reward as evidence for candidate, duel, example and block.

    Returns what was added for example and block.
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
    return {"deviation": deviation, "expected_deviation": expected}


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
