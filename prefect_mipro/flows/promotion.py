"""The promotion flows: the session's best prompt to use, by policy or with a person's consent.

Programs load a `PromptChampion` block. These flows write it, put each version on record in an
artifact, and emit an event for Prefect's automations.
"""

import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.assets import Asset, AssetProperties
from prefect.exceptions import FlowPauseTimeout
from pydantic import Field

from prefect_mipro.artifacts.answers import Answers
from prefect_mipro.artifacts.publishing import held_out_evaluations, run_url
from prefect_mipro.artifacts.reports import artifact_key
from prefect_mipro.blocks import PromptChampion, load
from prefect_mipro.errors import InputInvalid, MiproError, SessionNotFound
from prefect_mipro.events import Cause, SessionEvent, tell
from prefect_mipro.flows import promotion_page as page
from prefect_mipro.flows.approvals import (
    Approval,
    Decision,
    Question,
    Wait,
    answer_to,
    ask,
    hold,
    is_held,
    let_go,
    remembered,
    this_run,
)
from prefect_mipro.flows.champions import (
    candidate_version,
    champion_in_use,
    champion_name,
    put_champion_to_use,
    refreshed,
    saved_champion,
)
from prefect_mipro.flows.sessions import reached
from prefect_mipro.models.champions import ChampionVersion, PromotionOutcome, PromotionSummary
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.tasks import SessionHandle, promote_candidate, session_status
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.retries import RETRIED

EXAMPLES_READ = 100


class Policy(StrEnum):
    """Who decides: the duels of the session, or a person."""

    AUTOMATIC = "automatic"
    APPROVAL = "approval"


@flow(name="promote-champion")
def promote_champion(
    session: str | SessionHandle,
    *,
    policy: Policy = Policy.APPROVAL,
    champion: str | None = None,
    candidate_id: str | None = None,
    min_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95,
    min_rewards: Annotated[int, Field(ge=0)] = 20,
    wait: Wait | None = None,
    timeout_seconds: Annotated[int, Field(ge=1)] = 86_400,
    show_answers: bool = True,
    backend_url: str | None = None,
) -> PromotionSummary:
    """Put the session's best prompt to use, if it is better than the one in use.

    The first run stores the prompt that the session began with, so that programs have one to load.
    A run that comes before the session's first one changes nothing and says so.

    Args:
        session: The name of a saved `MiproSessionConfig` block, or the session's handle.
        policy: `automatic` takes the champion that won the session's duels. `approval` asks a
            person about it, and about a leading candidate whose evidence is good enough. While
            another run's question about the candidate is open, the run asks nothing and says so.
        champion: The name of the `PromptChampion` block; by default that of the config block, else
            one made from the session's id.
        candidate_id: The candidate to promote, whatever its evidence.
        min_probability: The probability of being better than the session's champion from which a
            person is asked about a candidate that has not won a duel.
        min_rewards: The number of rewards such a candidate must have.
        wait: How to wait for the person, `pause` or `suspend`; by default what suits the run.
        timeout_seconds: How long the person may take. Then the run fails, and nothing changes.
        show_answers: Whether the question shows inputs and answers from the session's traffic,
            which all users of the Prefect server can read.
        backend_url: The backend's URL, if neither block nor environment names one.

    Returns:
        The prompt now in use, its evidence, and what the run did.

    Raises:
        CandidateNotFound: The session has no candidate `candidate_id`.
        FlowPauseTimeout: The person did not answer in time.
        InputInvalid: The block `champion` belongs to another session.

    Example:
        ```python
        from prefect_mipro.flows import Policy, promote_champion

        summary = promote_champion("support-bot", policy=Policy.AUTOMATIC)
        print(summary.outcome, summary.number)
        ```
    """
    name = champion or champion_name(session)
    found: _Inquiry | _Answered | PromotionSummary | None
    found = _answer_before_suspension() if policy is Policy.APPROVAL else None
    if found is None:
        with reached(session, backend_url=backend_url) as handle:
            status = status_if_any(handle) if candidate_id is None else session_status(handle)
            if status is None:
                return _without_session(name, handle)
            present = champion_in_use(handle, status, name)
            chosen = candidate_id or choice(
                status,
                present,
                policy,
                min_probability=min_probability,
                min_rewards=min_rewards,
            )
            if chosen is None or chosen == present.candidate_id:
                return _summary(name, present.version, PromotionOutcome.UNCHANGED)
            version = candidate_version(handle, status, chosen)
            if policy is Policy.AUTOMATIC:
                return _promoted(handle, status, name, version, Cause.AUTOMATIC)
            found = _inquiry(handle, status, name, present, version, show_answers=show_answers)
    if isinstance(found, PromotionSummary):
        return found
    if isinstance(found, _Inquiry):
        found = _asked(found, wait=wait, timeout_seconds=timeout_seconds)
    with reached(session, backend_url=backend_url) as handle:
        summary = _settled(handle, *found)
    let_go(found.question)
    return summary


@flow(name="roll-back-champion")
def roll_back_champion(
    session: str | SessionHandle,
    *,
    champion: str | None = None,
    candidate_id: str | None = None,
    backend_url: str | None = None,
) -> PromotionSummary:
    """Put an earlier prompt to use again, in the block and in the session.

    The prompt in use is not promoted again unless a person names it by its id. The block changes
    first: an unreachable backend does not keep a bad prompt in use.

    Args:
        session: The name of a saved `MiproSessionConfig` block, or the session's handle.
        champion: The name of the `PromptChampion` block, as in `promote_champion`.
        candidate_id: The candidate to go back to; by default the one before.
        backend_url: The backend's URL, if neither block nor environment names one.

    Returns:
        The prompt now in use, and its evidence.

    Raises:
        Conflict: The block holds no such earlier prompt.
        InputInvalid: There is no such block.

    Example:
        ```python
        from prefect_mipro.flows import roll_back_champion

        summary = roll_back_champion("support-bot")
        print(summary.candidate_id)
        ```
    """
    name = champion or champion_name(session)
    present = saved_champion(name)
    if present is None:
        raise InputInvalid(
            f"no PromptChampion block is saved as {name!r}; promote_champion makes the first, and "
            "`champion` names another one"
        )
    target = present.roll_back(candidate_id).version
    summary = _put_to_use(name, target, Cause.ROLL_BACK, PromotionOutcome.ROLLED_BACK)
    try:
        with reached(session, backend_url=backend_url) as handle:
            promote_candidate(handle, target.candidate_id, reason="rolled back")
    except MiproError as error:
        run_logger().warning(
            "The session keeps its own champion; promote %s there yourself: %s",
            *(target.candidate_id, error),
        )
    return summary


@task(name="session-status", task_run_name="status of {session.session_id}", **RETRIED)
def status_if_any(session: SessionHandle) -> SessionStatus | None:
    """The session's status; `None` before the session exists."""
    try:
        return session_status.fn(session)
    except SessionNotFound:
        return None


def choice(
    status: SessionStatus,
    present: PromptChampion,
    policy: Policy,
    *,
    min_probability: float,
    min_rewards: int,
) -> str | None:
    """The candidate that should replace the one in use, if there is one."""
    settled = {present.candidate_id, *present.declined}
    if status.champion_candidate_id not in settled:
        return status.champion_candidate_id
    leader = status.candidates[status.best_candidate_id]
    proven = leader.reward_count >= min_rewards and leader.probability_better >= min_probability
    if policy is Policy.APPROVAL and leader.candidate_id not in settled and proven:
        return leader.candidate_id
    return None


@task(
    name="prepare-question",
    task_run_name="question about candidate {version.number}",
    **RETRIED,
)
def prepare_question(
    session: SessionHandle,
    status: SessionStatus,
    present: ChampionVersion,
    version: ChampionVersion,
    *,
    show_answers: bool,
) -> str:
    """The text above the form of an approval. It links to an artifact with the details."""
    with connection_to(session) as connection:
        before, after = (
            connection.client.examples(session.session_id, candidate_id, limit=EXAMPLES_READ)
            if show_answers and candidate_id in status.candidates
            else ()
            for candidate_id in (present.candidate_id, version.candidate_id)
        )
    proposal = page.Proposal(
        version=version,
        present=refreshed(present, status),
        status=status,
        evaluations=held_out_evaluations(session.session_id),
        answers=Answers.of(before, after),
    )
    artifact = create_markdown_artifact(
        page.question_page(proposal),
        key=artifact_key(session.session_id, "question"),
        description=proposal.title,
    )
    # Relative to the run's own page, because the browser may know the server by another name.
    return page.question(proposal, page_url=f"../../artifacts/artifact/{artifact}")


def overtaken(question: Question, present: PromptChampion, status: SessionStatus) -> str | None:
    """Why an approval no longer applies; `None` if what the person saw still holds."""
    candidate = status.candidates.get(question.candidate_id)
    if candidate is None:
        return f"the session has no candidate {question.candidate_id} any more"
    if present.candidate_id == question.candidate_id:
        return f"candidate {question.number} is in use already"
    if candidate.status == "retired" and not question.was_retired:
        why = f": {candidate.retired_reason}" if candidate.retired_reason else ""
        return f"candidate {question.number} was retired after the question was asked{why}"
    if present.candidate_id != question.in_use_id:
        return f"candidate {present.number} was put to use after the question was asked"
    if status.champion_candidate_id not in (question.session_champion_id, question.candidate_id):
        champion = status.candidates[status.champion_candidate_id]
        return f"candidate {champion.number} became the session's champion after it was asked"
    return None


class _Inquiry(NamedTuple):
    """A question that the present run asks, and the text above the form."""

    question: Question
    form_text: str


class _Answered(NamedTuple):
    """A question, and a person's answer that the present run acts on."""

    question: Question
    answer: Approval


def _answer_before_suspension() -> _Answered | None:
    """The answer for which the present run was suspended, if it was."""
    question = remembered()
    answer = answer_to(question) if question else None
    return _Answered(question, answer) if question and answer else None


def _inquiry(
    handle: SessionHandle,
    status: SessionStatus,
    name: str,
    present: PromptChampion,
    version: ChampionVersion,
    *,
    show_answers: bool,
) -> _Inquiry | _Answered | PromotionSummary:
    """The question to ask, an answer that no run acted on, or why there is nothing to ask."""
    question = hold(
        Question(
            session_id=handle.session_id,
            champion=name,
            candidate_id=version.candidate_id,
            number=version.number,
            in_use_id=present.candidate_id,
            session_champion_id=status.champion_candidate_id,
            was_retired=status.candidates[version.candidate_id].status == "retired",
        )
    )
    if question.holder_id != this_run():
        reason = (
            f"the question about candidate {question.number} has been open since "
            f"{question.asked_at:%Y-%m-%d %H:%M} UTC in flow run {question.run_name!r} "
            f"({run_url(question.run_id) or question.run_id})"
        )
        return _unchanged(question, present, PromotionOutcome.ASKED, reason)
    if answer := answer_to(question):
        run_logger().info(
            "Acting on the answer in flow run %r, which ended before it could", question.run_name
        )
        return _Answered(question, answer)
    # Another run may have settled the question after this one read the block.
    now = load(PromptChampion, name)
    if (now.candidate_id, now.declined) != (present.candidate_id, present.declined):
        let_go(question)
        return _summary(name, now.version, PromotionOutcome.UNCHANGED)
    form_text = prepare_question(
        handle, status, present.version, version, show_answers=show_answers
    )
    return _Inquiry(question, form_text)


def _asked(inquiry: _Inquiry, *, wait: Wait | None, timeout_seconds: int) -> _Answered:
    question, form_text = inquiry
    try:
        answer = ask(form_text, question, wait=wait, timeout_seconds=timeout_seconds)
    except FlowPauseTimeout:
        let_go(question)
        raise
    return _Answered(question, answer)


def _settled(handle: SessionHandle, question: Question, answer: Approval) -> PromotionSummary:
    """Do what the person decided, if the question still is what they saw."""
    name, present = question.champion, load(PromptChampion, question.champion)
    status = status_if_any(handle)
    if status is None:
        return _unchanged(question, present, PromotionOutcome.STALE, "its session is gone")
    if not is_held(question):
        return _unchanged(question, present, PromotionOutcome.STALE, "another run has asked again")
    reason = overtaken(question, present, status)
    match answer.decision:
        case Decision.LATER:
            return _unchanged(question, present, PromotionOutcome.POSTPONED, answer.reason)
        case Decision.DECLINE if present.candidate_id != question.candidate_id:
            present.decline(question.candidate_id).save(name, overwrite=True)
            return _unchanged(question, present, PromotionOutcome.DECLINED, answer.reason)
        case _ if reason is not None:
            return _unchanged(question, present, PromotionOutcome.STALE, reason)
    version = candidate_version(handle, status, question.candidate_id).model_copy(
        update={
            "promoted_by": answer.approved_by or "a person",
            "reason": answer.reason or "approved",
            "promoted_at": datetime.now(UTC),
        }
    )
    return _promoted(handle, status, name, version, Cause.APPROVAL)


def _promoted(
    handle: SessionHandle, status: SessionStatus, name: str, version: ChampionVersion, cause: Cause
) -> PromotionSummary:
    if status.champion_candidate_id != version.candidate_id:
        promote_candidate(handle, version.candidate_id, reason=version.reason)
    return _put_to_use(name, version, cause, PromotionOutcome.PROMOTED)


def _put_to_use(
    name: str, version: ChampionVersion, cause: Cause, outcome: PromotionOutcome
) -> PromotionSummary:
    previous = load(PromptChampion, name).candidate_id
    asset = Asset(
        key=f"mipro://{version.session_id}/champion",
        properties=AssetProperties(name=f"Prompt {name}", description=page.headline(version)),
    )
    key = put_champion_to_use.with_options(assets=[asset])(name, version, outcome)
    tell(
        SessionEvent.PROMOTED,
        version.session_id,
        cause=cause,
        candidate_id=version.candidate_id,
        number=version.number,
        previous_candidate_id=previous,
        champion=name,
    )
    return _summary(name, version, outcome).model_copy(
        update={"previous_candidate_id": previous, "artifact_key": key}
    )


_LOGGED = {
    PromotionOutcome.ASKED: (logging.INFO, "Candidate %s is not asked about again: %s"),
    PromotionOutcome.DECLINED: (logging.INFO, "Candidate %s was declined: %s"),
    PromotionOutcome.POSTPONED: (logging.INFO, "The decision on candidate %s was put off: %s"),
    PromotionOutcome.STALE: (
        logging.WARNING,
        "The answer about candidate %s no longer changes anything: %s",
    ),
}


def _unchanged(
    question: Question, present: PromptChampion, outcome: PromotionOutcome, reason: str
) -> PromotionSummary:
    run_logger().log(*_LOGGED[outcome], question.number, reason or "no reason given")
    return _summary(question.champion, present.version, outcome).model_copy(
        update={"reason": reason}
    )


def _without_session(name: str, session: SessionHandle) -> PromotionSummary:
    reason = (
        f"there is no session {session.session_id} at {session.backend_url} yet: the first run "
        "that opens it makes it, and the next promotion checks again"
    )
    run_logger().warning("Nothing to promote: %s", reason)
    return PromotionSummary(
        session_id=session.session_id,
        champion=name,
        outcome=PromotionOutcome.NO_SESSION,
        reason=reason,
    )


def _summary(name: str, version: ChampionVersion, outcome: PromotionOutcome) -> PromotionSummary:
    return PromotionSummary(
        session_id=version.session_id,
        champion=name,
        outcome=outcome,
        candidate_id=version.candidate_id,
        number=version.number,
        reason=version.reason,
        evidence=version.evidence,
    )
