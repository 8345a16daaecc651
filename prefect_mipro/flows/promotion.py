"""From a session's evidence to the prompt that programs use: by policy, or with a person's consent.

What programs load is a `PromptChampion` block. These flows write it, put each version on record
in an artifact, and tell Prefect's automations.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.assets import Asset, AssetProperties, materialize
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound
from pydantic import Field

from prefect_mipro.artifacts.answers import Answers
from prefect_mipro.artifacts.publishing import held_out_evaluations, run_url
from prefect_mipro.artifacts.reports import artifact_key
from prefect_mipro.blocks import MiproCredentials, PromptChampion, load
from prefect_mipro.errors import CandidateNotFound, InputInvalid, MiproError, SessionNotFound
from prefect_mipro.events import Cause, SessionEvent, tell
from prefect_mipro.flows import promotion_page as page
from prefect_mipro.flows.approval import Approval, Decision, Wait, answer_to, ask
from prefect_mipro.flows.backend import some_backend
from prefect_mipro.flows.questions import (
    Question,
    hold,
    is_held,
    let_go,
    new_question,
    remembered,
    this_run,
)
from prefect_mipro.models.champions import (
    ChampionVersion,
    Evidence,
    PromotionOutcome,
    PromotionSummary,
)
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.tasks import SessionHandle, promote_candidate, session_status
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.logs import run_logger
from prefect_mipro.tasks.opening import session_plan
from prefect_mipro.tasks.retries import RETRIED

EXAMPLES_READ = 100


class Inquiry(NamedTuple):
    """A question that the present run asks, and the text above the form."""

    question: Question
    form_text: str


class Answered(NamedTuple):
    """A question, and a person's answer that the present run acts on."""

    question: Question
    answer: Approval


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
    """Put the session's best prompt to use, if there is a better one than that in use.

    The first run stores the prompt that the session began with, so that programs have one to load.
    A run that comes before the session's first one changes nothing and says so.

    Args:
        session: The name of a saved `MiproSessionConfig` block, or the session's handle.
        policy: `automatic` takes the champion that the session's duels made. `approval` asks a
            person about it, and about a candidate in the lead whose evidence is good enough. While
            another run's question about the candidate is open, the run asks nothing and says so.
        champion: The name of the `PromptChampion` block; else that of the config block, else made
            from the session's id.
        candidate_id: The candidate to promote, whatever its evidence.
        min_probability: How likely a candidate that has not won a duel must be better than the
            session's champion before a person is asked.
        min_rewards: How many rewards it must have.
        wait: `pause` or `suspend`; else the one that fits the run.
        timeout_seconds: How long a person may take. The run fails then, and nothing changes.
        show_answers: Whether the question shows inputs and answers from the session's traffic,
            which all users of the Prefect server can read.
        backend_url: The backend, where neither block nor environment names one.
    """
    name = champion or champion_name(session)
    found: Inquiry | Answered | PromotionSummary | None
    found = _given_before() if policy is Policy.APPROVAL else None
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
    if isinstance(found, Inquiry):
        found = Answered(found.question, _asked(found, wait=wait, timeout_seconds=timeout_seconds))
    if isinstance(found, PromotionSummary):
        return found
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
    """Put an earlier prompt to use again, here and in the session.

    The one in use is not promoted again unless a person asks for it by its id. The block goes
    first: a backend that is out of reach does not keep a bad prompt in use.

    Args:
        session: The name of a saved `MiproSessionConfig` block, or the session's handle.
        champion: The name of the `PromptChampion` block; else as in `promote_champion`.
        candidate_id: The candidate to go back to; else the one before.
        backend_url: The backend, where neither block nor environment names one.
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
            "The session goes on with its own champion; promote %s there yourself: %s",
            *(target.candidate_id, error),
        )
    return summary


def champion_name(session: str | SessionHandle) -> str:
    """The name of the block for the session: as Prefect allows it, letters, digits and dashes."""
    text = session if isinstance(session, str) else session.session_id
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextmanager
def reached(session: str | SessionHandle, *, backend_url: str | None) -> Iterator[SessionHandle]:
    """A handle of a session that exists, and its backend for the length of the context."""
    if isinstance(session, SessionHandle):
        yield session
        return
    plan = session_plan(session)
    session_id = plan.session_id or plan.settings.mipro.system_id
    if session_id is None:
        raise InputInvalid(
            f"{session!r} names no session; give the name of a saved MiproSessionConfig block, or "
            "say system_id in the config"
        )
    with some_backend(backend_url=backend_url, credentials=plan.credentials) as url:
        yield SessionHandle(
            session_id=session_id,
            backend_url=url or load(MiproCredentials, plan.credentials or "").backend_url,
            credentials=plan.credentials,
        )


@task(name="session-status", task_run_name="status of {session.session_id}", **RETRIED)
def status_if_any(session: SessionHandle) -> SessionStatus | None:
    """How the session stands; `None` before anybody has opened it."""
    try:
        return session_status.fn(session)
    except SessionNotFound:
        return None


@task(name="champion-in-use", task_run_name="champion {name}", **RETRIED)
def champion_in_use(session: SessionHandle, status: SessionStatus, name: str) -> PromptChampion:
    """What programs load; at first the prompt that the session began with."""
    saved = saved_champion(name)
    if saved is not None:
        _same_session(saved, session, name)
        return saved
    version = _version(session, status, status.baseline_candidate_id, "the session began with it")
    block = PromptChampion.first(version)
    block.save(name)
    _publish(version, None)
    return block


@task(name="candidate-version", task_run_name="prompt of {candidate_id}", **RETRIED)
def candidate_version(
    session: SessionHandle, status: SessionStatus, candidate_id: str
) -> ChampionVersion:
    """The candidate's prompt with its evidence. Raises CandidateNotFound."""
    if candidate_id not in status.candidates:
        raise CandidateNotFound(
            f"session {session.session_id} has no candidate {candidate_id!r}; it has "
            f"{', '.join(status.candidates)}"
        )
    won = candidate_id == status.champion_candidate_id
    reason = "champion of the session" if won else "promoted by hand"
    return _version(session, status, candidate_id, reason)


@materialize(
    "mipro://session/champion",
    by="prefect-mipro",
    name="put-champion-to-use",
    task_run_name="use candidate {version.number} as {name}",
    **RETRIED,
)
def put_champion_to_use(name: str, version: ChampionVersion, outcome: PromotionOutcome) -> str:
    """Write artifact and block; a repeat changes nothing but the artifact's newest version."""
    block = load(PromptChampion, name)
    key = _publish(version, block.version)
    if block.candidate_id != version.candidate_id:
        unwanted = block.candidate_id
        block = (
            block.roll_back(version.candidate_id).decline(unwanted)
            if outcome is PromotionOutcome.ROLLED_BACK
            else block.promote(version)
        )
        block.save(name, overwrite=True)
    return key


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
    """The text above the form of an approval; the rest goes to an artifact that it links to."""
    with connection_to(session) as connection:
        before, after = (
            connection.client.examples(session.session_id, candidate_id, limit=EXAMPLES_READ)
            if show_answers and candidate_id in status.candidates
            else ()
            for candidate_id in (present.candidate_id, version.candidate_id)
        )
    proposal = page.Proposal(
        version=version,
        present=_refreshed(present, status),
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
    """Why an approval no longer applies; `None` when what the person saw still holds."""
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


def saved_champion(name: str) -> PromptChampion | None:
    """The saved block of that name, if there is one."""
    try:
        return load(PromptChampion, name)
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return None
        raise


def choice(
    status: SessionStatus,
    present: PromptChampion,
    policy: Policy,
    *,
    min_probability: float,
    min_rewards: int,
) -> str | None:
    """The candidate that should take the place of the one in use, if there is one."""
    settled = {present.candidate_id, *present.declined}
    if status.champion_candidate_id not in settled:
        return status.champion_candidate_id
    leader = status.candidates[status.best_candidate_id]
    proven = leader.reward_count >= min_rewards and leader.probability_better >= min_probability
    if policy is Policy.APPROVAL and leader.candidate_id not in settled and proven:
        return leader.candidate_id
    return None


def _given_before() -> Answered | None:
    """The answer for which the present run was suspended, when it has begun anew."""
    question = remembered()
    answer = answer_to(question) if question else None
    return Answered(question, answer) if question and answer else None


def _inquiry(
    handle: SessionHandle,
    status: SessionStatus,
    name: str,
    present: PromptChampion,
    version: ChampionVersion,
    *,
    show_answers: bool,
) -> Inquiry | Answered | PromotionSummary:
    """The question to ask; an answer that no run acted on; or why there is nothing to ask."""
    question = hold(
        new_question(
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
        return _asked_already(question, present.version)
    if answer := answer_to(question):
        run_logger().info(
            "Acting on the answer in flow run %r, which ended before it could", question.run_name
        )
        return Answered(question, answer)
    # Another run may have settled the question after this one read the block.
    now = load(PromptChampion, name)
    if (now.candidate_id, now.declined) != (present.candidate_id, present.declined):
        let_go(question)
        return _summary(name, now.version, PromotionOutcome.UNCHANGED)
    form_text = prepare_question(
        handle, status, present.version, version, show_answers=show_answers
    )
    return Inquiry(question, form_text)


def _asked(inquiry: Inquiry, *, wait: Wait | None, timeout_seconds: int) -> Approval:
    try:
        return ask(inquiry.form_text, inquiry.question, wait=wait, timeout_seconds=timeout_seconds)
    except FlowPauseTimeout:
        let_go(inquiry.question)
        raise


def _settled(handle: SessionHandle, question: Question, answer: Approval) -> PromotionSummary:
    """Do what the person decided, if the question still is what they saw."""
    name, present = question.champion, load(PromptChampion, question.champion)
    status = status_if_any(handle)
    if status is None:
        return _stale(name, present.version, question, "its session is gone")
    if not is_held(question):
        return _stale(name, present.version, question, "another run has asked again")
    reason = overtaken(question, present, status)
    match answer.decision:
        case Decision.LATER:
            return _postponed(name, present.version, question, answer)
        case Decision.DECLINE if present.candidate_id != question.candidate_id:
            return _declined(name, present.version, question.candidate_id, answer.reason)
        case _ if reason is not None:
            return _stale(name, present.version, question, reason)
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


def _asked_already(question: Question, present: ChampionVersion) -> PromotionSummary:
    reason = (
        f"the question about candidate {question.number} has been open since "
        f"{question.asked_at:%Y-%m-%d %H:%M} UTC in flow run {question.run_name!r} "
        f"({run_url(question.run_id) or question.run_id})"
    )
    run_logger().info("Not asked again: %s", reason)
    return _summary(question.champion, present, PromotionOutcome.ASKED, reason=reason)


def _postponed(
    name: str, present: ChampionVersion, question: Question, answer: Approval
) -> PromotionSummary:
    reason = answer.reason or "no reason given"
    run_logger().info("The decision on candidate %s was put off: %s", question.number, reason)
    return _summary(name, present, PromotionOutcome.POSTPONED, reason=answer.reason)


def _stale(
    name: str, present: ChampionVersion, question: Question, reason: str
) -> PromotionSummary:
    run_logger().warning(
        "The answer about candidate %s changes nothing any more: %s", question.number, reason
    )
    return _summary(name, present, PromotionOutcome.STALE, reason=reason)


def _put_to_use(
    name: str, version: ChampionVersion, cause: Cause, outcome: PromotionOutcome
) -> PromotionSummary:
    previous = load(PromptChampion, name).candidate_id
    asset = Asset(
        key=f"mipro://{version.session_id}/champion",
        properties=AssetProperties(name=f"Prompt {name}", description=page.headline(version)),
    )
    write = put_champion_to_use.with_options(assets=[asset])
    key = write(name, version, outcome)
    tell(
        SessionEvent.PROMOTED,
        version.session_id,
        cause=cause,
        candidate_id=version.candidate_id,
        number=version.number,
        previous_candidate_id=previous,
        champion=name,
    )
    return _summary(name, version, outcome, previous=previous, artifact_key=key)


def _without_session(name: str, session: SessionHandle) -> PromotionSummary:
    reason = (
        f"there is no session {session.session_id} at {session.backend_url} yet: the first run "
        "that opens it makes it, and the next promotion looks again"
    )
    run_logger().warning("Nothing to promote: %s", reason)
    return PromotionSummary(
        session_id=session.session_id,
        champion=name,
        outcome=PromotionOutcome.NO_SESSION,
        reason=reason,
    )


def _declined(
    name: str, present: ChampionVersion, candidate_id: str, reason: str
) -> PromotionSummary:
    load(PromptChampion, name).decline(candidate_id).save(name, overwrite=True)
    run_logger().info("Candidate %s was declined: %s", candidate_id, reason or "no reason given")
    return _summary(name, present, PromotionOutcome.DECLINED, reason=reason)


def _summary(
    name: str,
    version: ChampionVersion,
    outcome: PromotionOutcome,
    *,
    previous: str | None = None,
    artifact_key: str | None = None,
    reason: str | None = None,
) -> PromotionSummary:
    return PromotionSummary(
        session_id=version.session_id,
        champion=name,
        outcome=outcome,
        candidate_id=version.candidate_id,
        number=version.number,
        previous_candidate_id=previous,
        reason=version.reason if reason is None else reason,
        artifact_key=artifact_key,
        evidence=version.evidence,
    )


def _version(
    session: SessionHandle, status: SessionStatus, candidate_id: str, reason: str
) -> ChampionVersion:
    with connection_to(session) as connection:
        lease = connection.client.lease(session.session_id, candidate_id=candidate_id, render=True)
    return ChampionVersion.of(
        lease,
        status,
        reason=reason,
        promoted_by="prefect-mipro",
        promoted_at=datetime.now(UTC),
    )


def _refreshed(version: ChampionVersion, status: SessionStatus) -> ChampionVersion:
    """The version with what its candidate has earned until now."""
    candidate = status.candidates.get(version.candidate_id)
    if candidate is None:
        return version
    return version.model_copy(update={"evidence": Evidence.of(candidate, status)})


def _publish(version: ChampionVersion, previous: ChampionVersion | None) -> str:
    key = artifact_key(version.session_id, "prompt")
    create_markdown_artifact(
        page.record(version, previous), key=key, description=page.headline(version)
    )
    return key


def _same_session(block: PromptChampion, session: SessionHandle, name: str) -> None:
    if block.session_id != session.session_id:
        raise InputInvalid(
            f"the PromptChampion block {name!r} is that of session {block.session_id}, not of "
            f"{session.session_id}; give another name as `champion`"
        )
