"""Asking a person: the form of an approval, and the answer to it.

A paused run keeps its process and waits. A suspended one ends it, and begins anew when the answer
is there; it needs a deployment.
"""

from enum import StrEnum

from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, keyset_from_base_key, read_flow_run_input
from prefect.runtime import deployment, flow_run
from pydantic import Field

POLL_SECONDS = 2
_KEY = "champion"


class Wait(StrEnum):
    """How a run waits for a person."""

    PAUSE = "pause"
    SUSPEND = "suspend"


class Approval(RunInput):
    """What a person says to a candidate."""

    approve: bool = Field(default=False, description="Whether this prompt is to be used from now.")
    candidate_id: str = Field(description="The candidate that is approved or declined.")
    approved_by: str = Field(default="", description="Your name, for the record.")
    reason: str = Field(default="", description="Why, for the record.")


def ask(question: str, candidate_id: str, *, wait: Wait | None, timeout_seconds: int) -> Approval:
    """The answer of a person to a question in markdown. Raises FlowPauseTimeout without one.

    Without `wait` a run of a deployment is suspended, and any other is paused.
    """
    form = Approval.with_initial_data(description=question, candidate_id=candidate_id)
    if (wait or _fitting()) is Wait.SUSPEND:
        return suspend_flow_run(wait_for_input=form, timeout=timeout_seconds, key=_KEY)
    return pause_flow_run(
        wait_for_input=form, timeout=timeout_seconds, poll_interval=POLL_SECONDS, key=_KEY
    )


def answered() -> Approval | None:
    """The answer for which this run was suspended, when it has begun anew."""
    for state in ("suspended", "paused"):
        answer = read_flow_run_input(keyset_from_base_key(f"{state}-{_KEY}")["response"])
        if answer:
            return Approval.model_validate(answer)
    return None


def _fitting() -> Wait:
    alone = flow_run.get_parent_flow_run_id() is None
    return Wait.SUSPEND if deployment.get_id() and alone else Wait.PAUSE
