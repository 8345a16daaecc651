"""Tasks that read what a session's rollouts earned, and what was asked and answered in them."""

from __future__ import annotations

from typing import Literal

from prefect_mipro.client import operations
from prefect_mipro.models.rollouts import RolloutReport, Trace
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import Steps, ask
from prefect_mipro.tasks.twins import async_twin, session_task


@session_task(run_name="{order} rollouts of {session.session_id}")
def list_rollouts(
    session: SessionHandle, *, order: Literal["newest", "worst"] = "newest", limit: int = 100
) -> Steps[tuple[RolloutReport, ...]]:
    """List the rewarded rollouts of a session, with their feedback and texts.

    Args:
        session: The session's handle.
        order: `newest`, or `worst` for the lowest rewards among the newest 2,000.
        limit: The most rollouts to return, up to 1,000.

    Returns:
        The rollouts in that order.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import list_rollouts

        for rollout in list_rollouts(session, order="worst", limit=5):
            print(rollout.reward, rollout.input, rollout.feedback)
        ```
    """
    return (yield from ask(operations.rollouts(session.session_id, order=order, limit=limit)))


alist_rollouts = async_twin(list_rollouts)


@session_task(run_name="traces of {of}")
def list_traces(session: SessionHandle, of: str) -> Steps[tuple[Trace, ...]]:
    """List the recorded calls of a rollout: what was sent to the model, and what it answered.

    Args:
        session: The session's handle.
        of: The id of a rollout, or of one call.

    Returns:
        The calls in their order.

    Raises:
        SessionNotFound: The backend has no such session.
        RolloutNotFound: No call of such a rollout is recorded, or kept.

    Example:
        ```python
        from prefect_mipro.tasks import list_traces

        for trace in list_traces(session, "r-17"):
            print(trace.messages, trace.output)
        ```
    """
    return (yield from ask(operations.traces(session.session_id, of)))


alist_traces = async_twin(list_traces)
