"""Rollouts without the proxy as tasks: lease the prompt, post what the model answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect_mipro.client import operations
from prefect_mipro.client.arguments import record_of
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.leases import Lease, TraceReceipt, TraceRequest
from prefect_mipro.tasks.requests import own_id, without_secret
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import Steps, ask
from prefect_mipro.tasks.twins import async_twin, session_task


@session_task(run_name="lease for {rollout_id}")
def lease_prompt(
    session: SessionHandle,
    rollout_id: str,
    *,
    inputs: Mapping[str, Any] | None = None,
    messages: Sequence[ChatMessage] | None = None,
    render: bool = False,
    example_id: str | None = None,
) -> Steps[Lease]:
    """Lease the prompt of a rollout, for a program that calls its model without the proxy.

    Args:
        session: The session's handle.
        rollout_id: The rollout's id. All leases of one rollout have the same candidate.
        inputs: The texts of the prompt's placeholders, from which the lease's messages are made.
        messages: The program's own messages, in place of `inputs`.
        render: Whether to make the messages with the placeholders left as they are.
        example_id: The id of the rollout's example.

    Returns:
        The candidate's prompt, and the messages to send. Its URLs are without the secret, so calls
        to them need the key.

    Raises:
        InputInvalid: The inputs do not fill the prompt's placeholders.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import lease_prompt

        lease = lease_prompt(session, "rollout-1", inputs={"request": "play jazz"})
        answer = my_model(lease.messages)
        ```
    """
    lease = yield from ask(
        operations.lease(
            session.session_id,
            rollout_id,
            inputs=inputs,
            messages=messages,
            render=render,
            example_id=example_id,
            correlation_id=session.correlation_id,
        )
    )
    return without_secret(lease, session.session_id)


alease_prompt = async_twin(lease_prompt)


@session_task(run_name="trace of {rollout_id}")
def post_trace(
    session: SessionHandle,
    rollout_id: str,
    *,
    messages: Sequence[ChatMessage],
    output: str | None = None,
    response: JsonObject | None = None,
    error: str | None = None,
    usage: Mapping[str, Any] | None = None,
    latency_seconds: float | None = None,
    first_byte_seconds: float | None = None,
    model: str | None = None,
    trace_id: str | None = None,
    unapplied_reason: str = "",
) -> Steps[TraceReceipt]:
    """Post a call that a leased rollout made itself. It counts as one through the proxy.

    The answer is given as `output` or as `response`; a call that failed has an `error`.

    Args:
        session: The session's handle.
        rollout_id: The rollout's id, as leased.
        messages: The messages sent to the model, in the form of OpenAI's API.
        output: The text of the answer.
        response: The whole answer, a chat completion.
        error: Why the call failed.
        usage: The counts of tokens, under OpenAI's names or those of Bedrock, Vertex or Anthropic.
        latency_seconds: The duration of the call.
        first_byte_seconds: The time until the first token or byte of the answer.
        model: The name of the model.
        trace_id: The trace's id. The same id again is the same trace; by default retries of the
            task run are.
        unapplied_reason: Why the candidate's prompt was not used, if it was not.

    Returns:
        The receipt: the candidate that the call counts for, and whether it was posted before.

    Raises:
        InputInvalid: The messages or the answer are missing or unusable.
        RolloutNotFound: The session has leased no such rollout.

    Example:
        ```python
        from prefect_mipro.tasks import post_trace

        receipt = post_trace(session, "rollout-1", messages=lease.messages, output=answer)
        ```
    """
    request = record_of(
        TraceRequest,
        messages=messages,
        output=output,
        response=response,
        error=error,
        usage=usage,
        latency_seconds=latency_seconds,
        first_byte_seconds=first_byte_seconds,
        model=model,
        trace_id=trace_id,
        unapplied_reason=unapplied_reason,
    )
    operation = operations.post_trace(session.session_id, rollout_id, request, request_key=own_id())
    return (yield from ask(operation))


apost_trace = async_twin(post_trace)
