"""The operations of a session as tasks: a sync one, and an `a`-prefixed twin of its own.

All are safe to repeat: creating goes by the session's id, a reward by its rollout's, the others
change nothing or set a state. Results stay in memory, because stored ones could be read by anyone
who reads the storage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from prefect import task

from prefect_mipro.blocks import MiproCredentials, aload, load
from prefect_mipro.client import environment
from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import CandidateNotFound, InputInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import InitialPrompt, PromptMessage
from prefect_mipro.models.judgements import Judgement, RewardValue, judgement
from prefect_mipro.models.rollouts import RewardReceipt
from prefect_mipro.models.sessions import (
    CreateSession,
    RetiredCandidates,
    SessionState,
    SessionStatus,
    SessionUrls,
)
from prefect_mipro.tasks.connections import SessionHandle, async_connection_to, connection_to
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.notices import Notice
from prefect_mipro.tasks.ownership import creation_metadata, joined, undo_creation
from prefect_mipro.tasks.repeats import REPEATABLE
from prefect_mipro.tasks.requests import creation_request, reward_request, without_secret
from prefect_mipro.tasks.unapplied import atell_unapplied, tell_unapplied


@task(name="create-session", task_run_name="create session {session_id}", **REPEATABLE)
def create_session(
    config: Mapping[str, Any],
    *,
    session_id: str | None = None,
    backend_url: str | None = None,
    credentials: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    agent_id: str | None = None,
    correlation_id: str | None = None,
) -> SessionHandle:
    """Create the session, or resume the one that has the id.

    The backend is that of the `credentials` block, else `backend_url`, else `MIPRO_BACKEND_URL`.
    Without a session id the config's `system_id` is taken, else a new one is made.
    """
    url = load(MiproCredentials, credentials).backend_url if credentials else _found(backend_url)
    facts = creation_metadata(metadata)
    request = creation_request(config, session_id, overrides, facts, agent_id, correlation_id)
    prompt = MiproConfig.parse(config, overrides).initial_prompt
    session = _handle(request, url, credentials)
    with connection_to(session) as connection:
        status = connection.client.create_session(request)
        session = _created(session, status, prompt)
        joined(session, status)
        return session


@task(name="create-session", task_run_name="create session {session_id}", **REPEATABLE)
async def acreate_session(
    config: Mapping[str, Any],
    *,
    session_id: str | None = None,
    backend_url: str | None = None,
    credentials: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    agent_id: str | None = None,
    correlation_id: str | None = None,
) -> SessionHandle:
    """Create the session, or resume the one that has the id; see `create_session`."""
    url = (
        (await aload(MiproCredentials, credentials)).backend_url
        if credentials
        else _found(backend_url)
    )
    facts = creation_metadata(metadata)
    request = creation_request(config, session_id, overrides, facts, agent_id, correlation_id)
    prompt = MiproConfig.parse(config, overrides).initial_prompt
    session = _handle(request, url, credentials)
    async with async_connection_to(session) as connection:
        status = await connection.client.create_session(request)
        session = _created(session, status, prompt)
        await asyncio.to_thread(joined, session, status)
        return session


create_session.on_rollback(undo_creation)
acreate_session.on_rollback(undo_creation)


@task(name="session-status", task_run_name="status of {session.session_id}", **REPEATABLE)
def session_status(session: SessionHandle) -> SessionStatus:
    """How the session stands. Its URLs are without the secret, so they ask for the key."""
    with connection_to(session) as connection:
        return _shown(session, connection.client.session_status(session.session_id))


@task(name="session-status", task_run_name="status of {session.session_id}", **REPEATABLE)
async def asession_status(session: SessionHandle) -> SessionStatus:
    """How the session stands. Its URLs are without the secret, so they ask for the key."""
    async with async_connection_to(session) as connection:
        return _shown(session, await connection.client.session_status(session.session_id))


@task(name="session-urls", task_run_name="URLs of {session.session_id}", **REPEATABLE)
def session_urls(session: SessionHandle) -> SessionUrls:
    """Where the session's proxy is. The URLs are without the secret, so they ask for the key."""
    with connection_to(session) as connection:
        urls = connection.client.session_urls(
            session.session_id, correlation_id=session.correlation_id
        )
        return without_secret(urls, session.session_id)


@task(name="session-urls", task_run_name="URLs of {session.session_id}", **REPEATABLE)
async def asession_urls(session: SessionHandle) -> SessionUrls:
    """Where the session's proxy is. The URLs are without the secret, so they ask for the key."""
    async with async_connection_to(session) as connection:
        urls = await connection.client.session_urls(
            session.session_id, correlation_id=session.correlation_id
        )
        return without_secret(urls, session.session_id)


@task(name="pause-session", task_run_name="pause {session.session_id}", **REPEATABLE)
def pause_session(session: SessionHandle) -> SessionStatus:
    """Stop making proposals. Rollouts and rewards go on."""
    return _changed(session, SessionState.PAUSED)


@task(name="pause-session", task_run_name="pause {session.session_id}", **REPEATABLE)
async def apause_session(session: SessionHandle) -> SessionStatus:
    """Stop making proposals. Rollouts and rewards go on."""
    return await _achanged(session, SessionState.PAUSED)


@task(name="resume-session", task_run_name="resume {session.session_id}", **REPEATABLE)
def resume_session(session: SessionHandle) -> SessionStatus:
    """Make proposals again. Raises SessionEnded after the end."""
    return _changed(session, SessionState.RUNNING)


@task(name="resume-session", task_run_name="resume {session.session_id}", **REPEATABLE)
async def aresume_session(session: SessionHandle) -> SessionStatus:
    """Make proposals again. Raises SessionEnded after the end."""
    return await _achanged(session, SessionState.RUNNING)


@task(name="cancel-session", task_run_name="cancel {session.session_id}", **REPEATABLE)
def cancel_session(session: SessionHandle) -> SessionStatus:
    """End the session for good. Its champion is served from then on."""
    return _changed(session, SessionState.CANCELLED)


@task(name="cancel-session", task_run_name="cancel {session.session_id}", **REPEATABLE)
async def acancel_session(session: SessionHandle) -> SessionStatus:
    """End the session for good. Its champion is served from then on."""
    return await _achanged(session, SessionState.CANCELLED)


@task(name="promote-candidate", task_run_name="promote {candidate_id}", **REPEATABLE)
def promote_candidate(
    session: SessionHandle, candidate_id: str, *, reason: str | None = None
) -> SessionStatus:
    """Make a candidate the champion, without a duel: also the way back to an earlier one."""
    with connection_to(session) as connection:
        status = connection.client.promote(session.session_id, candidate_id, reason=reason)
        return _shown(session, status)


@task(name="promote-candidate", task_run_name="promote {candidate_id}", **REPEATABLE)
async def apromote_candidate(
    session: SessionHandle, candidate_id: str, *, reason: str | None = None
) -> SessionStatus:
    """Make a candidate the champion, without a duel: also the way back to an earlier one."""
    async with async_connection_to(session) as connection:
        status = await connection.client.promote(session.session_id, candidate_id, reason=reason)
        return _shown(session, status)


@task(name="retire-candidate", task_run_name="retire {candidate_id}", **REPEATABLE)
def retire_candidate(
    session: SessionHandle, candidate_id: str, *, reason: str | None = None
) -> RetiredCandidates:
    """Take a candidate out of play at once, also out of the rollouts that are pinned to it.

    A champion gives way to the candidate in play that won a duel last, else to the baseline.
    `promote_candidate` brings a retired candidate back.

    Args:
        session: The session's handle.
        candidate_id: A candidate of this session.
        reason: Kept with the candidate, and shown in its status.

    Returns:
        The candidates that were retired (none if it was retired already), and the champion now.

    Raises:
        CandidateNotFound: The session has no such candidate.
        Conflict: The candidate is the baseline, which cannot be retired.

    Example:
        ```python
        report = retire_candidate(session, "cand_3f9a0c12", reason="it is rude")
        print(report.champion_candidate_id)
        ```
    """
    with connection_to(session) as connection:
        _own(session, connection.client.candidate(candidate_id))
        return connection.client.retire(candidate_id, reason=reason)


@task(name="retire-candidate", task_run_name="retire {candidate_id}", **REPEATABLE)
async def aretire_candidate(
    session: SessionHandle, candidate_id: str, *, reason: str | None = None
) -> RetiredCandidates:
    """Take a candidate out of play at once; see `retire_candidate`."""
    async with async_connection_to(session) as connection:
        _own(session, await connection.client.candidate(candidate_id))
        return await connection.client.retire(candidate_id, reason=reason)


@task(name="retire-lever", task_run_name="retire {lever} {version}", **REPEATABLE)
def retire_lever(
    session: SessionHandle, lever: str, version: int, *, reason: str | None = None
) -> RetiredCandidates:
    """Retire all candidates that hold a lever version, and make no new ones with it.

    Args:
        session: The session's handle.
        lever: `instruction` or `demonstrations`.
        version: The version's number, as in the lineage of a candidate.
        reason: Kept with the candidates, and shown in their status.

    Returns:
        The candidates that were retired, and the champion now.

    Raises:
        NotFound: The session has no such lever or version.
        Conflict: The baseline holds the version.

    Example:
        ```python
        report = retire_lever(session, "demonstrations", 3, reason="it shows a real address")
        print(report.retired_candidates)
        ```
    """
    with connection_to(session) as connection:
        return connection.client.retire_lever(session.session_id, lever, version, reason=reason)


@task(name="retire-lever", task_run_name="retire {lever} {version}", **REPEATABLE)
async def aretire_lever(
    session: SessionHandle, lever: str, version: int, *, reason: str | None = None
) -> RetiredCandidates:
    """Retire all candidates that hold a lever version; see `retire_lever`."""
    async with async_connection_to(session) as connection:
        return await connection.client.retire_lever(
            session.session_id, lever, version, reason=reason
        )


@task(name="begin-epoch", task_run_name="new epoch of {session.session_id}", **REPEATABLE)
def begin_epoch(session: SessionHandle, *, reason: str | None = None) -> SessionStatus:
    """Learn anew with the same candidates, because the model or the traffic has changed."""
    with connection_to(session) as connection:
        status = connection.client.begin_epoch(session.session_id, reason=reason)
        return _shown(session, status)


@task(name="begin-epoch", task_run_name="new epoch of {session.session_id}", **REPEATABLE)
async def abegin_epoch(session: SessionHandle, *, reason: str | None = None) -> SessionStatus:
    """Learn anew with the same candidates, because the model or the traffic has changed."""
    async with async_connection_to(session) as connection:
        status = await connection.client.begin_epoch(session.session_id, reason=reason)
        return _shown(session, status)


@task(name="report-reward", task_run_name="reward {rollout_id}", **REPEATABLE)
def report_reward(
    session: SessionHandle,
    score: RewardValue,
    *,
    rollout_id: str,
    feedback: str | None = None,
    expected: str | None = None,
    example_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    stop: bool | None = None,
    shareable: bool = False,
) -> RewardReceipt:
    """Reward a rollout that ran elsewhere. `expected` is the right answer, where it is known.

    `score` is whatever a reward function may return. `shareable` says that the rollout's texts may
    be shown to other users, as a worked example.
    """
    judged = _judged(score, feedback, expected, metadata)
    request = reward_request(session, judged, rollout_id, example_id, stop, shareable=shareable)
    with connection_to(session) as connection:
        receipt = connection.client.reward(session.session_id, request)
        rollouts = int(receipt.prompt_applied is False)
        tell_unapplied(connection, session, Notice.UNAPPLIED_REWARD, rollouts=rollouts)
        return receipt


@task(name="report-reward", task_run_name="reward {rollout_id}", **REPEATABLE)
async def areport_reward(
    session: SessionHandle,
    score: RewardValue,
    *,
    rollout_id: str,
    feedback: str | None = None,
    expected: str | None = None,
    example_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    stop: bool | None = None,
    shareable: bool = False,
) -> RewardReceipt:
    """Reward a rollout that ran elsewhere. `expected` is the right answer, where it is known.

    `score` is whatever a reward function may return. `shareable` says that the rollout's texts may
    be shown to other users, as a worked example.
    """
    judged = _judged(score, feedback, expected, metadata)
    request = reward_request(session, judged, rollout_id, example_id, stop, shareable=shareable)
    async with async_connection_to(session) as connection:
        receipt = await connection.client.reward(session.session_id, request)
        rollouts = int(receipt.prompt_applied is False)
        await atell_unapplied(connection, session, Notice.UNAPPLIED_REWARD, rollouts=rollouts)
        return receipt


@task(name="list-candidates", task_run_name="candidates of {session.session_id}", **REPEATABLE)
def list_candidates(
    session: SessionHandle,
    *,
    status: str | None = None,
    sort: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> JsonObject:
    """A page of candidates: `items` and `next_cursor`. `sort` is for example `objective:desc`."""
    with connection_to(session) as connection:
        return connection.client.candidates(
            session.session_id, status=status, sort=sort, limit=limit, cursor=cursor
        )


@task(name="list-candidates", task_run_name="candidates of {session.session_id}", **REPEATABLE)
async def alist_candidates(
    session: SessionHandle,
    *,
    status: str | None = None,
    sort: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> JsonObject:
    """A page of candidates: `items` and `next_cursor`. `sort` is for example `objective:desc`."""
    async with async_connection_to(session) as connection:
        return await connection.client.candidates(
            session.session_id, status=status, sort=sort, limit=limit, cursor=cursor
        )


@task(name="get-candidate", task_run_name="candidate {candidate_id}", **REPEATABLE)
def get_candidate(session: SessionHandle, candidate_id: str) -> JsonObject:
    """One candidate of the session. Raises CandidateNotFound, also for another session's."""
    with connection_to(session) as connection:
        return _own(session, connection.client.candidate(candidate_id))


@task(name="get-candidate", task_run_name="candidate {candidate_id}", **REPEATABLE)
async def aget_candidate(session: SessionHandle, candidate_id: str) -> JsonObject:
    """One candidate of the session. Raises CandidateNotFound, also for another session's."""
    async with async_connection_to(session) as connection:
        return _own(session, await connection.client.candidate(candidate_id))


@task(name="list-seed-evals", task_run_name="seed evals of {session.session_id}", **REPEATABLE)
def list_seed_evals(
    session: SessionHandle,
    *,
    candidate_id: str | None = None,
    split: str | None = None,
    success: bool | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> JsonObject:
    """A page of rewarded rollouts, each with its example's seed: `items` and `next_cursor`."""
    with connection_to(session) as connection:
        return connection.client.seed_evals(
            session.session_id,
            candidate_id=candidate_id,
            split=split,
            success=success,
            limit=limit,
            cursor=cursor,
        )


@task(name="list-seed-evals", task_run_name="seed evals of {session.session_id}", **REPEATABLE)
async def alist_seed_evals(
    session: SessionHandle,
    *,
    candidate_id: str | None = None,
    split: str | None = None,
    success: bool | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> JsonObject:
    """A page of rewarded rollouts, each with its example's seed: `items` and `next_cursor`."""
    async with async_connection_to(session) as connection:
        return await connection.client.seed_evals(
            session.session_id,
            candidate_id=candidate_id,
            split=split,
            success=success,
            limit=limit,
            cursor=cursor,
        )


def _judged(
    score: RewardValue,
    feedback: str | None,
    expected: str | None,
    metadata: Mapping[str, Any] | None,
) -> Judgement:
    """The judgement; what is given beside the score goes before what is in it."""
    said = {"feedback": feedback, "expected": expected, "metadata": metadata}
    given = {name: value for name, value in said.items() if value is not None}
    return judgement(score).model_copy(update=given)


def _handle(request: CreateSession, backend_url: str, credentials: str | None) -> SessionHandle:
    return SessionHandle(
        session_id=request.session_id or "",
        backend_url=backend_url,
        correlation_id=request.correlation_id or request.agent_id,
        credentials=credentials,
    )


def _created(
    session: SessionHandle, status: SessionStatus, prompt: InitialPrompt | None
) -> SessionHandle:
    for warning in status.warnings:
        run_logger().warning("Session %s: %s", status.session_id, warning)
    own = _own_prompt(status, prompt)
    return session.model_copy(update={"session_id": status.session_id, "prompt": own})


def _own_prompt(status: SessionStatus, prompt: InitialPrompt | None) -> InitialPrompt | None:
    """The session's: one that goes on keeps the prompt it began with, whatever is sent now."""
    baseline = status.candidates.get(status.baseline_candidate_id)
    if baseline is None or baseline.baseline_messages is None:
        return prompt
    messages = tuple(
        PromptMessage(role=message["role"], pattern=message["content"], order=order)
        for order, message in enumerate(baseline.baseline_messages)
    )
    wildcards = prompt.wildcards if prompt else {}
    return InitialPrompt(messages=messages, wildcards=wildcards) if messages else None


def _found(backend_url: str | None) -> str:
    url = backend_url or environment.named_backend_url()
    if not url:
        raise InputInvalid(
            "no backend is named; give a credentials block or backend_url, set "
            f"{environment.URL_VARIABLE}, or use `with EmbeddedBackend() as backend` and pass "
            "backend.url"
        )
    return url


def _changed(session: SessionHandle, state: SessionState) -> SessionStatus:
    with connection_to(session) as connection:
        return _shown(session, connection.client.change_state(session.session_id, state))


async def _achanged(session: SessionHandle, state: SessionState) -> SessionStatus:
    async with async_connection_to(session) as connection:
        return _shown(session, await connection.client.change_state(session.session_id, state))


def _shown(session: SessionHandle, status: SessionStatus) -> SessionStatus:
    return without_secret(status, session.session_id)


def _own(session: SessionHandle, candidate: JsonObject) -> JsonObject:
    owner = candidate.get("system_id")
    if owner not in (None, session.session_id):
        raise CandidateNotFound(
            f"candidate {candidate.get('candidate_id')!r} belongs to session {owner}, "
            f"not to {session.session_id}"
        )
    return candidate
