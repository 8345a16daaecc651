"""Asking a person about a candidate: the question, the form of an approval, and the answer.

A paused run keeps its process while it waits. A suspended run ends its process and starts again
when the answer is there, which needs a deployment.

At most one question per candidate and session is open. Each is a Prefect Variable, whose name can
be created only once, so that of two runs that start together one asks. A concurrency limit cannot
do this, because a suspended run releases its slot. A question stays open only while the run that
holds it can act on an answer. After that the next run takes it over, with the answer if there is
one.
"""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import (
    RunInput,
    create_flow_run_input,
    delete_flow_run_input,
    read_flow_run_input,
)
from prefect.runtime import deployment, flow_run
from pydantic import AwareDatetime, Field

from prefect_mipro.models.base import LONGEST_REASON, Record

POLL_SECONDS = 2
# Longer than a run needs to ask or to act on an answer; it may wait half an hour for the embedded
# backend.
LONGEST_STEP = timedelta(hours=1)
TAG = "prefect-mipro"

_OWN = "mipro-question"
# How Prefect explains that a resumed run found its deployment busy (CANCEL_NEW).
_LIMIT_REACHED = "concurrency limit reached"


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
    """A person's answer. The decision has no default, so that it is not made by accident."""

    decision: Decision = Field(
        title="Your decision", description="Decline is for good; later asks again next time."
    )
    approved_by: str = Field(
        default="", max_length=200, title="Your name", description="For the record."
    )
    reason: str = Field(
        default="", max_length=LONGEST_REASON, title="Reason", description="For the record."
    )


def this_run() -> UUID:
    """The id of the present flow run."""
    return UUID(flow_run.get_id())


def _run_name() -> str:
    return flow_run.get_name() or str(this_run())


class Question(Record):
    """A question about a candidate, asked by this run, and the situation in which it was asked.

    The form and its answer are inputs of the flow run `run_id`. `holder_id` is the run that acts on
    the answer: the same run, or a later one that took the question over.
    """

    session_id: str
    champion: str
    candidate_id: str
    number: int
    in_use_id: str
    session_champion_id: str
    was_retired: bool = False
    run_id: UUID = Field(default_factory=this_run)
    run_name: str = Field(default_factory=_run_name)
    holder_id: UUID = Field(default_factory=this_run)
    asked_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    key: str = Field(default_factory=lambda: f"champion-{uuid4().hex[:8]}")

    @property
    def variable(self) -> str:
        """Name of the Variable: the same for every question about the candidate and the block."""
        subject = f"{self.session_id}\n{self.champion}\n{self.candidate_id}"
        return f"mipro-question-{hashlib.sha256(subject.encode()).hexdigest()[:16]}"


def ask(form_text: str, question: Question, *, wait: Wait | None, timeout_seconds: int) -> Approval:
    """Ask a person, with the markdown text above the form, and wait for the answer.

    Without `wait`, a run of a deployment is suspended and any other is paused. Raises
    FlowPauseTimeout if no answer comes in time.
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
    for state in ("suspended", "paused"):
        answer = read_flow_run_input(f"{state}-{question.key}-response", question.run_id)
        if answer:
            return Approval.model_validate(answer)
    return None


def hold(question: Question) -> Question:
    """Open the question, unless another run holds one about the candidate.

    Returns the open question: this one, another run's (see its `holder_id`), or an earlier one,
    now held by this run, whose answer no run has acted on.
    """
    with get_client(sync_client=True) as client:
        while True:
            wanted = VariableCreate(
                name=question.variable, value=question.model_dump(mode="json"), tags=[TAG]
            )
            with suppress(ObjectAlreadyExists):
                client.create_variable(wanted)
                return question
            found = client.read_variable_by_name(question.variable)
            if found is None:
                continue
            earlier = Question.model_validate(found.value)
            holder = None if earlier.holder_id == question.holder_id else _state(client, earlier)
            if holder is not None and can_act(holder, earlier, now=datetime.now(UTC)):
                return earlier
            if not _was_called_off(holder) and answer_to(earlier) is not None:
                question = earlier.model_copy(update={"holder_id": question.holder_id})
            _delete(client, found.id)


def is_held(question: Question) -> bool:
    """Whether no other run has taken the question over."""
    with get_client(sync_client=True) as client:
        found = client.read_variable_by_name(question.variable)
    return found is None or Question.model_validate(found.value).holder_id == this_run()


def let_go(question: Question) -> None:
    """Close the question of the present run."""
    with get_client(sync_client=True) as client:
        found = client.read_variable_by_name(question.variable)
        if found and Question.model_validate(found.value).holder_id == this_run():
            _delete(client, found.id)
    if question.run_id == this_run():
        _forget_own()


def remember(question: Question) -> None:
    """Keep the question with the present run, which may start again when the answer is there."""
    _forget_own()
    create_flow_run_input(_OWN, question.model_dump(mode="json"))


def remembered() -> Question | None:
    """The question that the present run asked before it was suspended."""
    kept = read_flow_run_input(_OWN)
    return Question.model_validate(kept) if kept else None


def can_act(holder: State[Any], question: Question, *, now: datetime) -> bool:
    """Whether a run in this state may still ask the question, or act on its answer."""
    if holder.is_final() or holder.is_cancelling():
        return False
    if holder.is_paused():
        end = holder.state_details.pause_timeout
        return end is None or now < end
    if holder.is_running():
        # Prefect reports a run as running even after its process was killed.
        return now < max(holder.timestamp, question.asked_at) + LONGEST_STEP
    return True


def _state(client: SyncPrefectClient, question: Question) -> State[Any] | None:
    """The state of the run that holds the question; `None` if the run was deleted."""
    with suppress(ObjectNotFound):
        return client.read_flow_run(question.holder_id).state
    return None


def _was_called_off(holder: State[Any] | None) -> bool:
    """Whether a person cancelled the run, and not a full concurrency limit."""
    if holder is None or not (holder.is_cancelled() or holder.is_cancelling()):
        return False
    return _LIMIT_REACHED not in (holder.message or "")


def _delete(client: SyncPrefectClient, variable_id: UUID) -> None:
    # By id, because a Variable of this name may belong to another run by now.
    try:
        client.request("DELETE", "/variables/{id}", path_params={"id": variable_id})
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise


def _forget_own() -> None:
    if remembered() is not None:
        delete_flow_run_input(_OWN)


def _fitting() -> Wait:
    alone = flow_run.get_parent_flow_run_id() is None
    return Wait.SUSPEND if deployment.get_id() and alone else Wait.PAUSE
