"""One function per endpoint: method, path, body, and the value that comes back.

An `Operation` is a value: making one sends nothing, and sending the same one twice is a repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

from prefect_mipro.client.answers import (
    as_it_is,
    examples_of,
    reviews_of,
    rollouts_of,
    status_of,
    traces_of,
    urls_of,
)
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.exports import ImportReceipt
from prefect_mipro.models.judgements import SCORE_KEYS, score_of
from prefect_mipro.models.leases import Lease, TraceReceipt, TraceRequest
from prefect_mipro.models.readiness import Ready
from prefect_mipro.models.reviews import DemonstrationReview
from prefect_mipro.models.rollouts import (
    ExampleTrace,
    RewardReceipt,
    RewardRequest,
    RolloutReport,
    Trace,
)
from prefect_mipro.models.sessions import (
    CreateSession,
    DeletedSession,
    ForgetReport,
    RetiredCandidates,
    SessionState,
    SessionStatus,
    SessionUrls,
    SystemRequest,
)

T_co = TypeVar("T_co", covariant=True)

LARGEST_PAGE = 1_000
TECHNIQUE = "discrete_optimization"

_SESSIONS = "/api/v1/online/sessions"
_SYSTEMS = "/api/systems"
_CANDIDATES = "/api/candidates"


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[T_co]):
    """A request to be made, and how its answer is read.

    `path` starts at the backend's root and is escaped already. `repeatable` means that sending it
    again after a failure does no harm. `heard` is called with the headers of a good answer.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: JsonObject | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool
    answer: Callable[[JsonObject], T_co]
    heard: Callable[[Mapping[str, str]], None] | None = None


def raw(operation: Operation[object]) -> Operation[JsonObject]:
    """The same operation, its answer as it came."""
    return Operation(
        method=operation.method,
        path=operation.path,
        query=operation.query,
        body=operation.body,
        headers=operation.headers,
        repeatable=operation.repeatable,
        answer=as_it_is,
    )


def create_session(
    request: CreateSession, *, request_key: str | None = None
) -> Operation[SessionStatus]:
    """Start a session. `request_key` names the request; the backend counts its repeats as one."""
    key = request_key or uuid4().hex
    system = request.system or SystemRequest(name=request.session_id or key)
    filled = request.model_copy(
        update={"technique": request.technique or TECHNIQUE, "system": system}
    )
    return Operation(
        method="POST",
        path=_SESSIONS,
        body=_body(filled),
        headers={"Idempotency-Key": key},
        repeatable=True,
        answer=status_of,
    )


def session_status(session_id: str) -> Operation[SessionStatus]:
    """Where a session stands, and the belief behind it."""
    return _get(_session_path(session_id), status_of)


def session_urls(session_id: str, *, correlation_id: str | None = None) -> Operation[SessionUrls]:
    """Where a session's proxy is reached."""
    query = _query(correlation_id=correlation_id)
    return _get(f"{_session_path(session_id)}/prompt", urls_of, query)


def reward(
    session_id: str, request: RewardRequest, *, request_key: str | None = None
) -> Operation[RewardReceipt]:
    """Reward a rollout. `request_key` names the request; the backend counts its repeats as one.

    Raises RewardInvalid where the score is no finite number.
    """
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/reward",
        body=_body(request) | {"reward_info": _with_plain_scores(request.reward_info)},
        headers={"Idempotency-Key": request_key or uuid4().hex},
        repeatable=True,
        answer=RewardReceipt.model_validate,
    )


def lease(
    session_id: str,
    rollout_id: str | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    messages: Sequence[ChatMessage] | None = None,
    render: bool = False,
    example_id: str | None = None,
    correlation_id: str | None = None,
    candidate_id: str | None = None,
) -> Operation[Lease]:
    """What a rollout runs with, for a program that calls its model itself.

    Of `inputs`, the texts of the prompt's placeholders, or of `messages`, the program's own, the
    backend makes the lease's messages. `render` makes them with the placeholders as they are.
    Without `rollout_id` the rollout is a new one. `candidate_id` asks for that candidate outside of
    learning: nothing is pinned.
    """
    path = f"{_session_path(session_id)}/prompt"
    named = {
        "rollout_id": rollout_id or uuid4().hex,
        "example_id": example_id,
        "correlation_id": correlation_id,
        "candidate_id": candidate_id,
    }
    if inputs is None and messages is None:
        query = _query(**named, render=render or None)
        return _get(path, Lease.model_validate, query)
    given = {"inputs": inputs, "messages": messages}
    body = {key: value for key, value in (named | given).items() if value not in (None, "")}
    return Operation(
        method="POST", path=path, body=body, repeatable=True, answer=Lease.model_validate
    )


def post_trace(
    session_id: str, rollout_id: str, request: TraceRequest, *, request_key: str | None = None
) -> Operation[TraceReceipt]:
    """Tell of a call that a leased rollout made itself.

    The request's `trace_id`, else `request_key`, names it; the backend counts its repeats as one.
    """
    rollout = _segment(rollout_id, name="rollout_id")
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/rollouts/{rollout}/traces",
        body=_body(request),
        headers={"Idempotency-Key": request_key or uuid4().hex},
        repeatable=True,
        answer=TraceReceipt.model_validate,
    )


def rotate_url(session_id: str) -> Operation[SessionUrls]:
    """Give a session's URLs a new secret, because the present one has leaked."""
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/proxy-token",
        # Of several new secrets the last one counts, and is answered.
        repeatable=True,
        answer=urls_of,
    )


def change_state(session_id: str, state: SessionState) -> Operation[SessionStatus]:
    """Pause, resume or cancel a session."""
    return Operation(
        method="PATCH",
        path=_session_path(session_id),
        body={"state": str(state)},
        repeatable=True,
        answer=status_of,
    )


def delete_session(session_id: str) -> Operation[DeletedSession]:
    """Delete a session and all that is known of it, in any state; its id is free again.

    A repeat of one that was done raises SessionNotFound.
    """
    return Operation(
        method="DELETE",
        path=_session_path(session_id),
        repeatable=True,
        answer=DeletedSession.model_validate,
    )


def promote(
    session_id: str, candidate_id: str, *, reason: str | None = None
) -> Operation[SessionStatus]:
    """Make a candidate the champion, without a duel: also the way back to an earlier one."""
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/champion",
        body={"candidate_id": candidate_id} | ({"reason": reason} if reason else {}),
        repeatable=True,
        answer=status_of,
    )


def forget(
    session_id: str,
    *,
    rollout_id: str | None = None,
    example_id: str | None = None,
    correlation_id: str | None = None,
    user: str | None = None,
    dry_run: bool = False,
) -> Operation[ForgetReport]:
    """Remove all of one rollout, example, correlation id or end user; exactly one is named.

    Lever versions that show a text of theirs are emptied, and their candidates retired. Counters
    stay. `dry_run` only says what would go. The report of a repeat tells what was left to remove.
    """
    subjects = {
        "rollout_id": rollout_id,
        "example_id": example_id,
        "correlation_id": correlation_id,
        "user": user,
    }
    named = {name: value for name, value in subjects.items() if value is not None}
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/forget",
        body={**named, "dry_run": dry_run},
        repeatable=True,
        answer=ForgetReport.model_validate,
    )


def retire(candidate_id: str, *, reason: str | None = None) -> Operation[RetiredCandidates]:
    """Take a candidate out of play, and out of the rollouts that are pinned to it."""
    return Operation(
        method="POST",
        path=f"{_CANDIDATES}/{_segment(candidate_id, name='candidate_id')}/retire",
        body={"reason": reason} if reason else {},
        repeatable=True,
        answer=RetiredCandidates.model_validate,
    )


def retire_lever(
    session_id: str, lever: str, version: int, *, reason: str | None = None
) -> Operation[RetiredCandidates]:
    """Retire all candidates that hold a version of the lever `instruction` or `demonstrations`."""
    return Operation(
        method="POST",
        path=f"{_system_path(session_id)}/levers/{_segment(lever, name='lever')}/{version}/retire",
        body={"reason": reason} if reason else {},
        repeatable=True,
        answer=RetiredCandidates.model_validate,
    )


def reviews(
    session_id: str, *, state: str | None = None
) -> Operation[tuple[DemonstrationReview, ...]]:
    """The demonstration sets that wait for a person, or those `approved` or `declined`."""
    return _get(f"{_session_path(session_id)}/reviews", reviews_of, _query(state=state))


def review(
    session_id: str,
    version: int,
    decision: str,
    *,
    without: Iterable[int] = (),
    by: str = "",
    reason: str = "",
) -> Operation[DemonstrationReview]:
    """`approve` a demonstration set, `without` some of its positions (from 1), or `decline` it."""
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/reviews/{version}",
        body={"decision": decision, "without": list(without), "by": by, "reason": reason},
        repeatable=True,
        answer=DemonstrationReview.model_validate,
    )


def begin_epoch(session_id: str, *, reason: str | None = None) -> Operation[SessionStatus]:
    """Learn anew with the same candidates, because the model or the traffic has changed."""
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/epoch",
        body={"reason": reason} if reason else {},
        # An epoch in which nothing was learned yet is as good as its successor.
        repeatable=True,
        answer=status_of,
    )


def sessions(
    *,
    state: str | None = None,
    kind: str | None = None,
    system_id: str | None = None,
    system_name: str | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Operation[JsonObject]:
    """A page of sessions: `items` and `next_cursor`. Times are ISO 8601 text."""
    query = _query(
        state=state,
        kind=kind,
        system_id=system_id,
        system_name=system_name,
        created_after=created_after,
        created_before=created_before,
        limit=_page(limit),
        cursor=cursor,
    )
    return _get(_SESSIONS, as_it_is, query)


def events(session_id: str, *, since_seq: int = 0, limit: int = 500) -> Operation[JsonObject]:
    """A session's `events` after `since_seq`, oldest first."""
    query = _query(since_seq=since_seq, limit=_page(limit))
    return _get(f"{_session_path(session_id)}/events", as_it_is, query)


def examples(
    session_id: str, candidate_id: str, *, limit: int = 100
) -> Operation[tuple[ExampleTrace, ...]]:
    """What a candidate answered in its newest rewarded rollouts of one call, newest first."""
    query = _query(candidate_id=candidate_id, limit=_page(limit))
    return _get(f"{_session_path(session_id)}/examples", examples_of, query)


def rollouts(
    session_id: str, *, order: str = "newest", limit: int = 100
) -> Operation[tuple[RolloutReport, ...]]:
    """Rewarded rollouts: the `newest` reward first, or the `worst` of the newest 2,000."""
    query = _query(order=order, limit=_page(limit))
    return _get(f"{_session_path(session_id)}/rollouts", rollouts_of, query)


def traces(session_id: str, of: str) -> Operation[tuple[Trace, ...]]:
    """The recorded calls of a rollout in their order, or the one call with the id `of`.

    Raises RolloutNotFound where there is neither.
    """
    return _get(f"{_session_path(session_id)}/traces", traces_of, _query(of=of))


def candidates(
    session_id: str,
    *,
    job_id: str | None = None,
    algorithm: str | None = None,
    mode: str | None = None,
    status: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
    sort: str | None = None,
    include: str | None = None,
) -> Operation[JsonObject]:
    """A page of candidates: `items` and `next_cursor`.

    `sort` has the form `objective:desc,created_at:desc`; `include` is a comma list.
    """
    query = _query(
        job_id=job_id,
        algorithm=algorithm,
        mode=mode,
        status=status,
        limit=_page(limit),
        cursor=cursor,
        sort=sort,
        include=include,
    )
    return _get(f"{_system_path(session_id)}/candidates", as_it_is, query)


def candidate(candidate_id: str) -> Operation[JsonObject]:
    """One candidate, of whichever session."""
    return _get(f"{_CANDIDATES}/{_segment(candidate_id, name='candidate_id')}", as_it_is)


def job_candidate(job_id: str, candidate_id: str) -> Operation[JsonObject]:
    """One candidate of an offline job, whose id starts with `pl_`."""
    if not job_id.startswith("pl_"):
        raise InputInvalid(f"job_id is {job_id!r}; it must start with 'pl_'")
    job = _segment(job_id, name="job_id")
    wanted = _segment(candidate_id, name="candidate_id")
    return _get(f"/api/v1/offline/jobs/{job}/candidates/{wanted}", as_it_is)


def add_candidate(
    session_id: str,
    instruction: str,
    *,
    demonstrations: Sequence[Mapping[str, str]] | None = None,
    label: str | None = None,
) -> Operation[JsonObject]:
    """Add a candidate with a prompt of your own. Not safe to repeat.

    Each demonstration has an `input` and an `output`. Without any, the candidate has the
    champion's.
    """
    shown = None if demonstrations is None else [dict(each) for each in demonstrations]
    body = {"instruction": instruction, "demonstrations": shown, "label": label}
    return Operation(
        method="POST",
        path=f"{_system_path(session_id)}/candidates",
        body={name: value for name, value in body.items() if value is not None},
        repeatable=False,
        answer=as_it_is,
    )


def seed_evals(
    session_id: str,
    *,
    job_id: str | None = None,
    candidate_id: str | None = None,
    split: str | None = None,
    seed: int | None = None,
    success: bool | None = None,
    limit: int = 100,
    cursor: str | None = None,
    sort: str | None = None,
    include: str | None = None,
) -> Operation[JsonObject]:
    """A page of rewarded rollouts, each with its example's seed: `items` and `next_cursor`."""
    query = _query(
        job_id=job_id,
        candidate_id=candidate_id,
        split=split,
        seed=seed,
        success=success,
        limit=_page(limit),
        cursor=cursor,
        sort=sort,
        include=include,
    )
    return _get(f"{_system_path(session_id)}/seed-evals", as_it_is, query)


def export_session(session_id: str, *, traces: bool = True) -> Operation[JsonObject]:
    """All that is known of a session, as JSON lines: an answer for `stream`.

    Without `traces` no line holds what was asked and answered.
    """
    return _get(
        f"{_session_path(session_id)}/export", as_it_is, {"traces": "true" if traces else "false"}
    )


def import_lines(session_id: str, lines: Sequence[JsonObject]) -> Operation[ImportReceipt]:
    """Send consecutive lines of an export to another backend: all of them, in their order."""
    return Operation(
        method="POST",
        path=f"{_session_path(session_id)}/import",
        body={"lines": list(lines)},
        repeatable=True,
        answer=ImportReceipt.model_validate,
    )


def health() -> Operation[JsonObject]:
    """Whether the backend is up."""
    return _get("/health", as_it_is)


def ready() -> Operation[Ready]:
    """Whether the backend would answer calls. Raises NotReady, which says what is amiss."""
    return Operation(method="GET", path="/ready", repeatable=False, answer=Ready.model_validate)


def _get(
    path: str,
    answer: Callable[[JsonObject], T_co],
    query: Mapping[str, str] | None = None,
) -> Operation[T_co]:
    return Operation(method="GET", path=path, query=query or {}, repeatable=True, answer=answer)


def _body(record: Record) -> JsonObject:
    return record.model_dump(exclude_none=True)


def _with_plain_scores(reward_info: JsonObject) -> JsonObject:
    """Scores may be of NumPy's or other types, which JSON does not have."""
    given = {key: reward_info[key] for key in SCORE_KEYS if reward_info.get(key) is not None}
    return reward_info | {
        key: score_of(value, name=f"reward_info.{key}") for key, value in given.items()
    }


def _query(**values: object) -> dict[str, str]:
    """Booleans become the words `True` and `False`, which is what backends of this API get."""
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def _page(limit: int) -> int:
    return max(1, min(int(limit), LARGEST_PAGE))


def _session_path(session_id: str) -> str:
    return f"{_SESSIONS}/{_segment(session_id, name='session_id')}"


def _system_path(session_id: str) -> str:
    return f"{_SYSTEMS}/{_segment(session_id, name='session_id')}"


def _segment(value: str, *, name: str) -> str:
    """One path segment. Backends other than ours may mint ids that need escapes."""
    text = str(value).strip()
    if text in ("", ".", ".."):
        raise InputInvalid(f"{name} is {value!r}; give the id that the backend answered")
    return quote(text, safe=":~")
