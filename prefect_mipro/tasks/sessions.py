"""The life of a session as tasks: creation, status, URLs, state changes and deletion.

All of them may be retried: creation goes by the session's id, and the others change nothing or set
a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prefect_mipro.blocks import MiproCredentials, load
from prefect_mipro.client import environment, operations
from prefect_mipro.client.operations import Operation
from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import InputInvalid, SessionNotFound
from prefect_mipro.models.chat import InitialPrompt, PromptMessage
from prefect_mipro.models.sessions import ForgetReport, SessionState, SessionStatus, SessionUrls
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.ownership import creation_metadata, joined, undo_creation
from prefect_mipro.tasks.requests import creation_request, without_secret
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import Connect, Steps, ask, blocking
from prefect_mipro.tasks.twins import async_twin, session_task


@session_task(run_name="create session {session_id}")
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
) -> Steps[SessionHandle]:
    """Create a session, or resume the one with the given id.

    Args:
        config: The session config as a dict; `open_session` also takes blocks and files.
        session_id: The session's id. By default the config's `system_id`, else a new id.
        backend_url: The backend's URL, if no block names it. By default `MIPRO_BACKEND_URL`.
        credentials: The name of a saved `MiproCredentials` block.
        overrides: Values that replace those of the config, by dotted path.
        metadata: Facts to store with the session.
        agent_id: The name of the agent whose prompt is optimized.
        correlation_id: An id that the session's calls and rewards carry by default.

    Returns:
        The session's handle, which the other tasks take. It holds no key.

    Raises:
        ConfigInvalid: The config cannot be used.
        InputInvalid: No backend is named, or the session id cannot be part of a URL.
        KeyMissing: The backend is on another machine, and no key for it is set.

    Example:
        ```python
        from prefect_mipro.tasks import create_session

        session = create_session(config, session_id="support-bot", credentials="mipro")
        ```
    """
    if credentials:
        url = (yield from blocking(load, MiproCredentials, credentials)).backend_url
    else:
        url = _named_backend(backend_url)
    request = creation_request(
        config, session_id, overrides, creation_metadata(metadata), agent_id, correlation_id
    )
    prompt = MiproConfig.parse(config, overrides).initial_prompt
    session = SessionHandle(
        session_id=request.session_id or "",
        backend_url=url,
        correlation_id=correlation_id or agent_id,
        credentials=credentials,
    )
    yield Connect(session)
    status = yield from ask(operations.create_session(request))
    for warning in status.warnings:
        run_logger().warning("Session %s: %s", status.session_id, warning)
    session = session.model_copy(
        update={"session_id": status.session_id, "prompt": _prompt_of(status, prompt)}
    )
    yield from blocking(joined, session, status)
    return session


acreate_session = async_twin(create_session)
create_session.on_rollback(undo_creation)
acreate_session.on_rollback(undo_creation)


@session_task(run_name="status of {session.session_id}")
def session_status(session: SessionHandle) -> Steps[SessionStatus]:
    """Read the status of a session: its state, candidates, rewards and evidence.

    Args:
        session: The session's handle.

    Returns:
        The status. Its URLs are without the secret, so calls to them need the key.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import session_status

        status = session_status(session)
        print(status.champion_candidate_id, status.reward_count)
        ```
    """
    return (yield from _status(session, operations.session_status(session.session_id)))


asession_status = async_twin(session_status)


@session_task(run_name="URLs of {session.session_id}")
def session_urls(session: SessionHandle) -> Steps[SessionUrls]:
    """Read the URLs of a session's proxy.

    Args:
        session: The session's handle.

    Returns:
        The URLs, without the secret, so calls to them need the key.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import session_urls

        urls = session_urls(session)
        print(urls.chat_completions_url)
        ```
    """
    urls = yield from ask(
        operations.session_urls(session.session_id, correlation_id=session.correlation_id)
    )
    return without_secret(urls, session.session_id)


asession_urls = async_twin(session_urls)


@session_task(run_name="new URL of {session.session_id}")
def rotate_url(session: SessionHandle) -> Steps[SessionUrls]:
    """Give a session's URLs a new secret, because the current one has leaked.

    The earlier URLs are refused at once. Handles stay valid: they call with the key, by the
    session's id.

    Args:
        session: The session's handle.

    Returns:
        The URLs without the secret, as Prefect may show them. Programs that call without a key get
        the new ones from `MiproCredentials.get_client().session_urls(session_id)`.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import rotate_url

        urls = rotate_url(session)
        ```
    """
    urls = yield from ask(operations.rotate_url(session.session_id))
    return without_secret(urls, session.session_id)


arotate_url = async_twin(rotate_url)


@session_task(run_name="pause {session.session_id}")
def pause_session(session: SessionHandle) -> Steps[SessionStatus]:
    """Pause a session: it makes no more proposals, while rollouts and rewards go on.

    Args:
        session: The session's handle.

    Returns:
        The status afterwards.

    Raises:
        SessionEnded: The session has ended.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import pause_session

        status = pause_session(session)
        ```
    """
    return (yield from _set_state(session, SessionState.PAUSED))


apause_session = async_twin(pause_session)


@session_task(run_name="resume {session.session_id}")
def resume_session(session: SessionHandle) -> Steps[SessionStatus]:
    """Resume a paused session: it makes proposals again.

    Args:
        session: The session's handle.

    Returns:
        The status afterwards.

    Raises:
        SessionEnded: The session has ended.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import resume_session

        status = resume_session(session)
        ```
    """
    return (yield from _set_state(session, SessionState.RUNNING))


aresume_session = async_twin(resume_session)


@session_task(run_name="cancel {session.session_id}")
def cancel_session(session: SessionHandle) -> Steps[SessionStatus]:
    """End a session for good. From then on it serves its champion and takes no rewards.

    Args:
        session: The session's handle.

    Returns:
        The status afterwards.

    Raises:
        SessionEnded: The session has already succeeded.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import cancel_session

        status = cancel_session(session)
        ```
    """
    return (yield from _set_state(session, SessionState.CANCELLED))


acancel_session = async_twin(cancel_session)


@session_task(run_name="new epoch of {session.session_id}")
def begin_epoch(session: SessionHandle, *, reason: str | None = None) -> Steps[SessionStatus]:
    """Begin a new epoch: learn anew with the same candidates, after the model or traffic changed.

    Args:
        session: The session's handle.
        reason: Why, for the record.

    Returns:
        The status afterwards.

    Raises:
        SessionEnded: The session has ended.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import begin_epoch

        status = begin_epoch(session, reason="new model")
        print(status.epoch)
        ```
    """
    operation = operations.begin_epoch(session.session_id, reason=reason)
    return (yield from _status(session, operation))


abegin_epoch = async_twin(begin_epoch)


@session_task(run_name="delete {session.session_id}")
def delete_session(session: SessionHandle) -> Steps[None]:
    """Delete a session and all its data. Deleting it again does nothing.

    Args:
        session: The session's handle.

    Raises:
        KeyRejected: The backend does not accept the key.

    Example:
        ```python
        from prefect_mipro.tasks import delete_session

        delete_session(session)
        ```
    """
    with suppress(SessionNotFound):
        yield from ask(operations.delete_session(session.session_id))


adelete_session = async_twin(delete_session)


# The run's name does not say whose data it is: Prefect keeps names.
@session_task(run_name="forget data of {session.session_id}")
def forget_data(
    session: SessionHandle,
    *,
    user: str | None = None,
    rollout_id: str | None = None,
    example_id: str | None = None,
    correlation_id: str | None = None,
    dry_run: bool = False,
) -> Steps[ForgetReport]:
    """Remove all data of one end user, rollout, example or correlation id from the session.

    Lever versions that show one of the removed texts are emptied, and their candidates retired.
    Counters stay. The name or id appears in no log line, run name, task input or result. Prefect
    does store the parameters of a *flow*, and of a task that is submitted with `delay`: call the
    task directly, and read the name inside the flow.

    Args:
        session: The session's handle.
        user: An end user, as named by `user` in the metadata of rewards.
        rollout_id: One rollout.
        example_id: One example of a data set.
        correlation_id: One conversation. Exactly one of these four is given.
        dry_run: Report what would be removed, and change nothing.

    Returns:
        The number of rollouts and calls, the emptied lever versions, the retired candidates and
        the champion afterwards. The report of a repeat counts only what was left to remove.

    Raises:
        InputInvalid: None or several of the four are given.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect.blocks.system import Secret
        from prefect_mipro.tasks import forget_data

        report = forget_data(session, user=Secret.load("erase-user").get())
        print(report.rollouts)
        ```
    """
    return (
        yield from ask(
            operations.forget(
                session.session_id,
                user=user,
                rollout_id=rollout_id,
                example_id=example_id,
                correlation_id=correlation_id,
                dry_run=dry_run,
            )
        )
    )


aforget_data = async_twin(forget_data)


def _status(session: SessionHandle, operation: Operation[SessionStatus]) -> Steps[SessionStatus]:
    return without_secret((yield from ask(operation)), session.session_id)


def _set_state(session: SessionHandle, state: SessionState) -> Steps[SessionStatus]:
    return (yield from _status(session, operations.change_state(session.session_id, state)))


def _named_backend(backend_url: str | None) -> str:
    url = backend_url or environment.named_backend_url()
    if not url:
        raise InputInvalid(
            "no backend is named; give a credentials block or backend_url, set "
            f"{environment.URL_VARIABLE}, or use `with EmbeddedBackend() as backend` and pass "
            "backend.url"
        )
    return url


def _prompt_of(status: SessionStatus, prompt: InitialPrompt | None) -> InitialPrompt | None:
    """The prompt the session began with: a resumed one keeps it, whatever the config says now."""
    baseline = status.candidates.get(status.baseline_candidate_id)
    if baseline is None or baseline.baseline_messages is None:
        return prompt
    messages = tuple(
        PromptMessage(role=message["role"], pattern=message["content"], order=order)
        for order, message in enumerate(baseline.baseline_messages)
    )
    wildcards = prompt.wildcards if prompt else {}
    return InitialPrompt(messages=messages, wildcards=wildcards) if messages else None
