"""Rollouts without the proxy as tasks: lease the prompt, post what the model answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack
from uuid import uuid4

from prefect import task
from prefect.runtime import task_run

from prefect_mipro.client.arguments import TraceArguments, record_of
from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.leases import Lease, TraceReceipt, TraceRequest
from prefect_mipro.tasks.connections import SessionHandle, async_connection_to, connection_to
from prefect_mipro.tasks.repeats import REPEATABLE
from prefect_mipro.tasks.requests import without_secret


@task(name="lease-prompt", task_run_name="lease for {rollout_id}", **REPEATABLE)
def lease_prompt(
    session: SessionHandle,
    rollout_id: str,
    *,
    inputs: Mapping[str, Any] | None = None,
    messages: Sequence[ChatMessage] | None = None,
    render: bool = False,
    example_id: str | None = None,
) -> Lease:
    """What the rollout runs with; `inputs` or `messages` make the lease's own messages.

    `render` makes them with the prompt's placeholders as they are. The URLs are without the
    secret, so they ask for the key.
    """
    with connection_to(session) as connection:
        lease = connection.client.lease(
            session.session_id,
            rollout_id,
            inputs=inputs,
            messages=messages,
            render=render,
            example_id=example_id,
            correlation_id=session.correlation_id,
        )
        return without_secret(lease, session.session_id)


@task(name="lease-prompt", task_run_name="lease for {rollout_id}", **REPEATABLE)
async def alease_prompt(
    session: SessionHandle,
    rollout_id: str,
    *,
    inputs: Mapping[str, Any] | None = None,
    messages: Sequence[ChatMessage] | None = None,
    render: bool = False,
    example_id: str | None = None,
) -> Lease:
    """What the rollout runs with; see `lease_prompt`."""
    async with async_connection_to(session) as connection:
        lease = await connection.client.lease(
            session.session_id,
            rollout_id,
            inputs=inputs,
            messages=messages,
            render=render,
            example_id=example_id,
            correlation_id=session.correlation_id,
        )
        return without_secret(lease, session.session_id)


@task(name="post-trace", task_run_name="trace of {rollout_id}", **REPEATABLE)
def post_trace(
    session: SessionHandle, rollout_id: str, **trace: Unpack[TraceArguments]
) -> TraceReceipt:
    """Tell of a call that a leased rollout made itself: it counts as one through the proxy.

    Without a `trace_id`, repeats of the same task run are the same trace.
    """
    request = record_of(TraceRequest, **trace)
    with connection_to(session) as connection:
        return connection.client.post_trace(
            session.session_id, rollout_id, request, request_key=_own_key()
        )


@task(name="post-trace", task_run_name="trace of {rollout_id}", **REPEATABLE)
async def apost_trace(
    session: SessionHandle, rollout_id: str, **trace: Unpack[TraceArguments]
) -> TraceReceipt:
    """Tell of a call that a leased rollout made itself; see `post_trace`."""
    request = record_of(TraceRequest, **trace)
    async with async_connection_to(session) as connection:
        return await connection.client.post_trace(
            session.session_id, rollout_id, request, request_key=_own_key()
        )


def _own_key() -> str:
    return str(task_run.get_id() or uuid4())
