"""Rewards that come later, many at once: each counts once, and a bad one spoils no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, ParamSpec, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.utilities.collections import visit_collection

from prefect_mipro.errors import (
    InputInvalid,
    MiproError,
    ProgramFailed,
    RewardConflict,
    SessionEnded,
)
from prefect_mipro.models.judgements import RewardValue, judgement
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.summaries import RewardOutcome, RewardReport, RolloutResult
from prefect_mipro.tasks.connections import SessionHandle, async_connection_to, connection_to
from prefect_mipro.tasks.course import OWN_IDS, is_retry
from prefect_mipro.tasks.fanout import gathered, threaded
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.notices import Notice
from prefect_mipro.tasks.repeats import REPEATABLE
from prefect_mipro.tasks.requests import reward_request
from prefect_mipro.tasks.unapplied import atell_unapplied, tell_unapplied

Rewarded = RolloutResult | PrefectFuture[RolloutResult] | str
Rewards = Mapping[str, RewardValue] | Sequence[tuple[Rewarded, RewardValue]]

SHOWN_PROBLEMS = 5

P = ParamSpec("P")
R = TypeVar("R")

# As Any: Prefect's methods are overloads that no subclass can repeat.
_Task: Any = Task


class _RewardsTask(_Task):  # type: ignore[misc]
    """A task that takes futures of failed task runs, with which Prefect would not start it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*map(_settled, args), **_settled_rewards(kwargs))

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return super().submit(*map(_settled, args), **_settled_rewards(kwargs))

    def with_options(self, **options: Any) -> Any:
        return _takes_failures(super().with_options(**options))


def _takes_failures(rewards_task: Task[P, R]) -> Task[P, R]:
    changed: Any = copy(rewards_task)
    changed.__class__ = _RewardsTask
    return changed  # type: ignore[no-any-return]


def _settled_rewards(arguments: dict[str, Any]) -> dict[str, Any]:
    if "rewards" not in arguments:
        return arguments
    return arguments | {"rewards": _settled(arguments["rewards"])}


def _settled(rewards: Any) -> Any:
    """The rewards, with an error in the place of each future or state that has no result."""
    # A list of pairs, whose second part may be a pair itself.
    return visit_collection(rewards, _or_error, return_data=True, max_depth=3)


def _or_error(value: Any) -> Any:
    if isinstance(value, PrefectFuture):
        value.wait()
    state = value.state if isinstance(value, PrefectFuture) else value
    if not isinstance(state, State) or state.is_completed():
        return value
    run = state.state_details.task_run_id
    return ProgramFailed(f"task run {run} ended as {state.name}: {state.message}")


def _run_name() -> str:
    session = task_run.get_parameters().get("session")
    return f"rewards of {getattr(session, 'session_id', 'no session')}"


@_takes_failures
@task(name="report-rewards", task_run_name=_run_name, **REPEATABLE)
def report_rewards(
    session: SessionHandle,
    rewards: Rewards,
    *,
    max_workers: int = 8,
    shareable: bool = False,
) -> RewardReport:
    """Reward rollouts that ran before, at most `max_workers` at a time.

    A reward is whatever a reward function may return: a number, a pair of number and feedback, a
    `Judgement`. Reporting the same rewards again changes nothing; after a retry of the task, those
    that had counted before it are told as repeated. What is wrong with one of them stands in the
    report, and the others count all the same. A rollout may be named by the future of its task
    run, which may have failed. `shareable` says that the texts of all of them may be shown to other
    users, as worked examples: set it where the inputs are a data set of your own.
    """
    cases, refused = _read(session, rewards, shareable=shareable)
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
        tell_unapplied(connection, session, Notice.UNAPPLIED_REWARD, rollouts=_unapplied(said))
    return _reported(session, refused, said)


@_takes_failures
@task(name="report-rewards", task_run_name=_run_name, **REPEATABLE)
async def areport_rewards(
    session: SessionHandle,
    rewards: Rewards,
    *,
    max_workers: int = 8,
    shareable: bool = False,
) -> RewardReport:
    """Reward rollouts that ran before; see `report_rewards`."""
    cases, refused = _read(session, rewards, shareable=shareable)
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
        await atell_unapplied(
            connection, session, Notice.UNAPPLIED_REWARD, rollouts=_unapplied(said)
        )
    return _reported(session, refused, said)


class _Case(NamedTuple):
    """What is to be said of one rollout, in order: the first reward counts."""

    rollout_id: str
    requests: list[RewardRequest]


class _Said(NamedTuple):
    rollout_id: str
    outcome: RewardOutcome
    problem: str = ""
    prompt_applied: bool | None = None


def _read(
    session: SessionHandle, rewards: Rewards, *, shareable: bool
) -> tuple[list[_Case], list[_Said]]:
    cases: dict[str, list[RewardRequest]] = defaultdict(list)
    refused = []
    for number, (owner, value) in enumerate(_pairs(rewards)):
        if isinstance(owner, BaseException):
            problem = f"the rollout failed, so there is nothing to reward: {owner}"
            refused.append(_Said(f"rewards[{number}]", RewardOutcome.FAILED, problem))
            continue
        rollout_id = owner.rollout_id if isinstance(owner, RolloutResult) else owner
        example_id = owner.example_id if isinstance(owner, RolloutResult) else None
        if not isinstance(rollout_id, str) or not rollout_id.strip():
            problem = "a rollout id is a text that is not blank; leave out what was not a rollout"
            refused.append(_Said(repr(rollout_id), RewardOutcome.INVALID, problem))
            continue
        if isinstance(value, BaseException):
            problem = f"there is no reward, for what was to make it failed: {value}"
            refused.append(_Said(rollout_id, RewardOutcome.INVALID, problem))
            continue
        try:
            judged = judgement(value)
        except InputInvalid as error:
            refused.append(_refused(rollout_id, error))
            continue
        cases[rollout_id].append(
            reward_request(session, judged, rollout_id, example_id, shareable=shareable)
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
    return _Said(rollout_id, outcome, prompt_applied=receipt.prompt_applied)


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
    if len(problems) > SHOWN_PROBLEMS:
        more = len(problems) - SHOWN_PROBLEMS
        run_logger().warning("%d more rewards did not count: see the report's problems", more)
    repeated = len(ids[RewardOutcome.REPEATED])
    if repeated and not ids[RewardOutcome.ACCEPTED] and not is_retry():
        run_logger().warning(
            "Session %s: none of the rewards counted, because %d rollouts had the same reward "
            "before. %s",
            *(session.session_id, repeated, OWN_IDS),
        )
    return RewardReport(
        session_id=session.session_id,
        rollout_ids={outcome: tuple(found) for outcome, found in ids.items()},
        problems=problems,
        unapplied_rollouts=_unapplied(said),
    )


def _unapplied(said: Iterable[list[_Said]]) -> int:
    """How many of the rollouts ran without their candidate's prompt."""
    return sum(any(each.prompt_applied is False for each in several) for several in said)
