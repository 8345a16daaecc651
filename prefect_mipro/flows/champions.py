"""The prompt in use: the `PromptChampion` block that programs load, and its record."""

import re
from datetime import UTC, datetime

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.assets import materialize
from prefect.exceptions import ObjectNotFound

from prefect_mipro.artifacts.reports import artifact_key
from prefect_mipro.blocks import PromptChampion, load
from prefect_mipro.errors import CandidateNotFound, InputInvalid
from prefect_mipro.flows import promotion_page as page
from prefect_mipro.models.champions import ChampionVersion, Evidence, PromotionOutcome
from prefect_mipro.models.sessions import SessionStatus
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.retries import RETRIED


def champion_name(session: str | SessionHandle) -> str:
    """The default name of a session's block, in the letters, digits and dashes Prefect allows."""
    text = session if isinstance(session, str) else session.session_id
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def saved_champion(name: str) -> PromptChampion | None:
    """The saved block of that name, if there is one."""
    try:
        return load(PromptChampion, name)
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return None
        raise


@task(name="champion-in-use", task_run_name="champion {name}", **RETRIED)
def champion_in_use(session: SessionHandle, status: SessionStatus, name: str) -> PromptChampion:
    """The block that programs load. The first one holds the prompt the session began with."""
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
    """Write artifact and block. A retry only adds a version of the artifact."""
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


def refreshed(version: ChampionVersion, status: SessionStatus) -> ChampionVersion:
    """The version with the present evidence of its candidate."""
    candidate = status.candidates.get(version.candidate_id)
    if candidate is None:
        return version
    return version.model_copy(update={"evidence": Evidence.of(candidate, status)})


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
