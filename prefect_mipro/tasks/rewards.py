"""Rewards for rollouts that ran before, as tasks: one reward, or many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, ParamSpec, TypeVar
from uuid import UUID, uuid5

from prefect import Task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.utilities.collections import visit_collection

from prefect_mipro.client import operations
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
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.requests import own_id, reward_request
from prefect_mipro.tasks.rollout_progress import is_retry
from prefect_mipro.tasks.rollout_warnings import OWN_IDS, Topic, warn_unapplied
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import Steps, ask, concurrently
from prefect_mipro.tasks.twins import async_twin, session_task

Rewarded = RolloutResult | PrefectFuture[RolloutResult] | str
Rewards = Mapping[str, RewardValue] | Sequence[tuple[Rewarded, RewardValue]]

SHOWN_PROBLEMS = 5

P = ParamSpec("P")
R = TypeVar("R")


def _reward_name() -> str:
    # Prefect keeps names, so a correlation id, which may stand for a person, is not in it.
    return f"reward {task_run.get_parameters().get('rollout_id') or 'a rollout'}"


@session_task(run_name=_reward_name)
def report_reward(
    session: SessionHandle,
    score: RewardValue,
    *,
    rollout_id: str | None = None,
    feedback: str | None = None,
    expected: str | None = None,
    example_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    artifact: Mapping[str, Any] | None = None,
    correlation_id: str | None = None,
    candidate_id: str | None = None,
    trace_ref: str | None = None,
    stop: bool | None = None,
    shareable: bool = False,
) -> Steps[RewardReceipt]:
    """Reward a rollout that ran elsewhere.

    Args:
        session: The session's handle.
        score: The reward: a number, a pair of number and feedback, a mapping with a `score`, or a
            `Judgement`. The arguments below replace what it holds.
        rollout_id: The rollout's id. By default the newest rollout without a reward, among those of
            `correlation_id` and `candidate_id` if they are given.
        feedback: What was good or bad about the answer, in words.
        expected: The right answer, if it is known. It may become a worked example.
        example_id: The id of the rollout's example.
        metadata: Facts to store with the reward. `user` names the end user for `forget_data`.
        artifact: What the rollout produced, to store with the reward.
        correlation_id: An id that the rollout's calls carried; by default the session's.
        candidate_id: The candidate that the rollout ran with, for a rollout the backend has not
            seen.
        trace_ref: A reference to the rollout's trace in another system.
        stop: Whether to end the session with this reward.
        shareable: Whether the rollout's texts may be shown to other users as a worked example.

    Returns:
        The receipt: the candidate rewarded, and whether the reward was reported before.

    Raises:
        RewardInvalid: The score is not a finite number, or outside the session's `reward_range`.
        RewardConflict: The rollout already has another reward, or ran with another candidate.
        RolloutNotFound: No rollout id is given, and no such rollout lacks a reward.
        SessionEnded: The session is cancelled.

    Example:
        ```python
        from prefect_mipro.tasks import report_reward

        receipt = report_reward(session, 0.5, rollout_id="rollout-1", feedback="too long")
        print(receipt.candidate_id)
        ```
    """
    given = {"feedback": feedback, "expected": expected, "metadata": metadata}
    judged = judgement(score).model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    request = reward_request(
        session,
        judged,
        rollout_id,
        example_id,
        stop,
        shareable=shareable,
        artifact=artifact,
        correlation_id=correlation_id,
        candidate_id=candidate_id,
        trace_ref=trace_ref,
    )
    # A retry must not reward the next rollout that has none.
    key = str(uuid5(UUID(own_id()), request.model_dump_json()))
    receipt = yield from ask(operations.reward(session.session_id, request, request_key=key))
    rollouts = int(receipt.prompt_applied is False)
    yield from warn_unapplied(session, Topic.UNAPPLIED_REWARD, rollouts=rollouts)
    return receipt


areport_reward = async_twin(report_reward)


# As Any: Prefect's methods are overloads that no subclass can repeat.
_Task: Any = Task


class _RewardsTask(_Task):  # type: ignore[misc]
    """A task that also takes futures of failed task runs, which Prefect would refuse to start."""

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
    """The rewards, each future or state without a result replaced by an error."""
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
@session_task(run_name=_run_name)
def report_rewards(
    session: SessionHandle,
    rewards: Rewards,
    *,
    max_workers: int = 8,
    shareable: bool = False,
) -> Steps[RewardReport]:
    """Reward many rollouts that ran before.

    A reward that cannot be used is named in the report, and the others still count. Reporting the
    same rewards again changes nothing; after a retry of the task, rewards that had counted before
    it are reported as repeated.

    Args:
        session: The session's handle.
        rewards: A mapping from rollout id to reward, or a list of pairs of a rollout and its
            reward. A rollout is its result, its id, or the future of its task run, which may have
            failed. A reward is what a reward function may return: a number, a pair of number and
            feedback, a `Judgement`.
        max_workers: The number of rewards sent at a time.
        shareable: Whether the texts of all these rollouts may be shown to other users as worked
            examples. Set it if the inputs are a data set of your own.

    Returns:
        The report: the rollouts by outcome, and why rewards did not count.

    Raises:
        InputInvalid: The rewards are neither a mapping nor a list of pairs.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import report_rewards

        report = report_rewards(session, {"rollout-1": 1.0, "rollout-2": (0.0, "wrong intent")})
        print(report.counts, report.problems)
        ```
    """
    cases, refused = _read(session, rewards, shareable=shareable)
    bodies = [_sent(session, case) for case in cases]
    results = yield from concurrently(bodies, max_workers=max_workers)
    unapplied = sum(any(r.prompt_applied is False for r in several) for several in results)
    yield from warn_unapplied(session, Topic.UNAPPLIED_REWARD, rollouts=unapplied)
    everything = [*refused, *(each for several in results for each in several)]
    return _reported(session, everything, unapplied)


areport_rewards = _takes_failures(async_twin(report_rewards))


class _Case(NamedTuple):
    """The rewards of one rollout, in order: the first one counts."""

    rollout_id: str
    requests: list[RewardRequest]


class _Result(NamedTuple):
    """The outcome of one reward."""

    rollout_id: str
    outcome: RewardOutcome
    problem: str = ""
    prompt_applied: bool | None = None


def _read(
    session: SessionHandle, rewards: Rewards, *, shareable: bool
) -> tuple[list[_Case], list[_Result]]:
    cases: dict[str, list[RewardRequest]] = defaultdict(list)
    refused = []
    for number, (owner, value) in enumerate(_pairs(rewards)):
        if isinstance(owner, BaseException):
            problem = f"the rollout failed, so there is nothing to reward: {owner}"
            refused.append(_Result(f"rewards[{number}]", RewardOutcome.FAILED, problem))
            continue
        rollout_id = owner.rollout_id if isinstance(owner, RolloutResult) else owner
        example_id = owner.example_id if isinstance(owner, RolloutResult) else None
        if not isinstance(rollout_id, str) or not rollout_id.strip():
            problem = "a rollout id is a text that is not blank; leave out what was not a rollout"
            refused.append(_Result(repr(rollout_id), RewardOutcome.INVALID, problem))
            continue
        if isinstance(value, BaseException):
            problem = f"there is no reward, because the run that should make it failed: {value}"
            refused.append(_Result(rollout_id, RewardOutcome.INVALID, problem))
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


def _sent(session: SessionHandle, case: _Case) -> Steps[list[_Result]]:
    results = []
    for request in case.requests:
        try:
            receipt = yield from ask(operations.reward(session.session_id, request))
            results.append(_counted(receipt))
        except (RewardConflict, SessionEnded, InputInvalid) as error:
            results.append(_refused(case.rollout_id, error))
    return results


def _counted(receipt: RewardReceipt) -> _Result:
    rollout_id = str(receipt.rollout_id)
    if not receipt.attached:
        problem = "the backend knows no such rollout; it keeps the reward until one comes"
        return _Result(rollout_id, RewardOutcome.UNKNOWN, problem)
    outcome = RewardOutcome.REPEATED if receipt.duplicate else RewardOutcome.ACCEPTED
    return _Result(rollout_id, outcome, prompt_applied=receipt.prompt_applied)


def _refused(rollout_id: str, error: MiproError) -> _Result:
    match error:
        case RewardConflict():
            outcome = RewardOutcome.CONFLICTING
        case SessionEnded():
            outcome = RewardOutcome.TOO_LATE
        case _:
            outcome = RewardOutcome.INVALID
    return _Result(rollout_id, outcome, error.message)


def _reported(session: SessionHandle, results: Sequence[_Result], unapplied: int) -> RewardReport:
    ids: dict[RewardOutcome, list[str]] = {outcome: [] for outcome in RewardOutcome}
    for each in results:
        ids[each.outcome].append(each.rollout_id)
    problems = {each.rollout_id: each.problem for each in results if each.problem}
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
        unapplied_rollouts=unapplied,
    )
