"""Rewards that come later, many at once: each counts once, and a bad one spoils no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prefect import task
from prefect.futures import PrefectFuture
from prefect.runtime import task_run

from prefect_mipro.errors import InputInvalid, MiproError, RewardConflict, SessionEnded
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.summaries import RewardOutcome, RewardReport, RolloutResult
from prefect_mipro.tasks.connections import SessionHandle, async_connection_to, connection_to
from prefect_mipro.tasks.fanout import gathered, threaded
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.programs import Judgement, judgement
from prefect_mipro.tasks.repeats import REPEATABLE
from prefect_mipro.tasks.requests import reward_request

RewardValue = float | tuple[float, str] | Judgement
Rewarded = RolloutResult | PrefectFuture[RolloutResult] | str
Rewards = Mapping[str, RewardValue] | Sequence[tuple[Rewarded, RewardValue]]

SHOWN_PROBLEMS = 5


def _run_name() -> str:
    session = task_run.get_parameters().get("session")
    return f"rewards of {getattr(session, 'session_id', 'no session')}"


@task(name="report-rewards", task_run_name=_run_name, **REPEATABLE)
def report_rewards(
    session: SessionHandle, rewards: Rewards, *, max_workers: int = 8
) -> RewardReport:
    """Reward rollouts that ran before, at most `max_workers` at a time.

    A reward is a number, a pair of number and feedback, or a `Judgement`. Reporting the same
    rewards again changes nothing; after a retry of the task, those that had counted before it are
    told as repeated. What is wrong with one of them stands in the report, and the others count all
    the same.
    """
    cases, refused = _read(session, rewards)
    with connection_to(session) as connection:

        def report(case: _Case) -> list[_Said]:
            said = []
            for request in case.requests:
                try:
                    said.append(_counted(connection.client.reward(session.session_id, request)))
                except (RewardConflict, SessionEnded, InputInvalid) as error:
                    said.append(_refused(case.rollout_id, error))
            return said

        said = threaded(report, cases, max_workers=max_workers)
    return _reported(session, refused, said)


@task(name="report-rewards", task_run_name=_run_name, **REPEATABLE)
async def areport_rewards(
    session: SessionHandle, rewards: Rewards, *, max_workers: int = 8
) -> RewardReport:
    """Reward rollouts that ran before; see `report_rewards`."""
    cases, refused = _read(session, rewards)
    async with async_connection_to(session) as connection:

        async def report(case: _Case) -> list[_Said]:
            said = []
            for request in case.requests:
                try:
                    receipt = await connection.client.reward(session.session_id, request)
                    said.append(_counted(receipt))
                except (RewardConflict, SessionEnded, InputInvalid) as error:
                    said.append(_refused(case.rollout_id, error))
            return said

        said = await gathered(report, cases, max_workers=max_workers)
    return _reported(session, refused, said)


class _Case(NamedTuple):
    """What is to be said of one rollout, in order: the first reward counts."""

    rollout_id: str
    requests: list[RewardRequest]


class _Said(NamedTuple):
    rollout_id: str
    outcome: RewardOutcome
    problem: str = ""


def _read(session: SessionHandle, rewards: Rewards) -> tuple[list[_Case], list[_Said]]:
    cases: dict[str, list[RewardRequest]] = defaultdict(list)
    refused = []
    for owner, value in _pairs(rewards):
        rollout_id = owner.rollout_id if isinstance(owner, RolloutResult) else owner
        example_id = owner.example_id if isinstance(owner, RolloutResult) else None
        if not isinstance(rollout_id, str) or not rollout_id.strip():
            problem = "a rollout id is a text that is not blank; leave out what was not a rollout"
            refused.append(_Said(repr(rollout_id), RewardOutcome.INVALID, problem))
            continue
        try:
            judged = judgement(value)
        except InputInvalid as error:
            refused.append(_refused(rollout_id, error))
            continue
        cases[rollout_id].append(
            reward_request(
                session,
                judged.score,
                rollout_id,
                judged.feedback,
                judged.expected,
                example_id,
                judged.metadata,
            )
        )
    return [_Case(*case) for case in cases.items()], refused


def _pairs(rewards: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(rewards, Mapping):
        return rewards.items()
    # A generator would be empty when the task is repeated.
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise InputInvalid(
            f"the rewards are of type {type(rewards).__name__}; give a mapping from rollout id to "
            "reward, or a list of pairs, for example list(zip(results, scores))"
        )
    for number, pair in enumerate(rewards):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputInvalid(
                f"rewards[{number}] is {pair!r:.80}; give a pair of a rollout (its result or its "
                "id) and its reward"
            )
    return rewards


def _counted(receipt: RewardReceipt) -> _Said:
    rollout_id = str(receipt.rollout_id)
    if not receipt.attached:
        problem = "the backend knows no such rollout; it keeps the reward until one comes"
        return _Said(rollout_id, RewardOutcome.UNKNOWN, problem)
    outcome = RewardOutcome.REPEATED if receipt.duplicate else RewardOutcome.ACCEPTED
    return _Said(rollout_id, outcome)


def _refused(rollout_id: str, error: MiproError) -> _Said:
    match error:
        case RewardConflict():
            outcome = RewardOutcome.CONFLICTING
        case SessionEnded():
            outcome = RewardOutcome.TOO_LATE
        case _:
            outcome = RewardOutcome.INVALID
    return _Said(rollout_id, outcome, error.message)


def _reported(
    session: SessionHandle, refused: list[_Said], said: Iterable[list[_Said]]
) -> RewardReport:
    everything = [*refused, *(each for several in said for each in several)]
    ids: dict[RewardOutcome, list[str]] = {outcome: [] for outcome in RewardOutcome}
    for each in everything:
        ids[each.outcome].append(each.rollout_id)
    problems = {each.rollout_id: each.problem for each in everything if each.problem}
    for rollout_id, problem in list(problems.items())[:SHOWN_PROBLEMS]:
        run_logger().warning("The reward of rollout %s did not count: %s", rollout_id, problem)
    return RewardReport(
        session_id=session.session_id,
        rollout_ids={outcome: tuple(found) for outcome, found in ids.items()},
        problems=problems,
    )
