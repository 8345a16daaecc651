"""Asking a person: the form of an approval, and the answer to it.

A paused run keeps its process and waits. A suspended one ends it, and begins anew when the answer
is there; it needs a deployment.
"""

from enum import StrEnum

from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from prefect_mipro.flows.questions import Question, remember, stored_answer
from prefect_mipro.models.sessions import LONGEST_REASON

POLL_SECONDS = 2


class Wait(StrEnum):
    """How a run waits for a person."""

    PAUSE = "pause"
    SUSPEND = "suspend"


class Decision(StrEnum):
    """What a person decides about a candidate.

    Use it from now on, never ask about it again, or change nothing and ask again in the next run.
    """

    APPROVE = "approve"
    DECLINE = "decline"
    LATER = "later"


class Approval(RunInput):
    """A person's answer. The decision has no default: no answer comes from pressing a button."""

    decision: Decision = Field(
        title="Your decision", description="Decline is for good; later asks again next time."
    )
    approved_by: str = Field(
        default="", max_length=200, title="Your name", description="For the record."
    )
    reason: str = Field(
        default="", max_length=LONGEST_REASON, title="Reason", description="For the record."
    )


def ask(form_text: str, question: Question, *, wait: Wait | None, timeout_seconds: int) -> Approval:
    """The answer of a person who reads the text, markdown, above the form.

    Without `wait` a run of a deployment is suspended, and any other is paused. Raises
    FlowPauseTimeout without an answer.
    """
    remember(question)
    form = Approval.with_initial_data(description=form_text)
    if (wait or _fitting()) is Wait.SUSPEND:
        return suspend_flow_run(wait_for_input=form, timeout=timeout_seconds, key=question.key)
    return pause_flow_run(
        wait_for_input=form, timeout=timeout_seconds, poll_interval=POLL_SECONDS, key=question.key
    )


def answer_to(question: Question) -> Approval | None:
    """A person's answer to the question, if there is one."""
    answer = stored_answer(question)
    return None if answer is None else Approval.model_validate(answer)


def _fitting() -> Wait:
    alone = flow_run.get_parent_flow_run_id() is None
    return Wait.SUSPEND if deployment.get_id() and alone else Wait.PAUSE
