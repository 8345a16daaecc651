"""The candidates of a session as tasks, and the rewarded rollouts behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_mipro.client import operations
from prefect_mipro.errors import CandidateNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.sessions import RetiredCandidates, SessionStatus
from prefect_mipro.tasks.requests import without_secret
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import Steps, ask
from prefect_mipro.tasks.twins import async_twin, session_task


@session_task(run_name="candidates of {session.session_id}")
def list_candidates(
    session: SessionHandle,
    *,
    status: str | None = None,
    sort: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Steps[JsonObject]:
    """List the candidates of a session, page by page.

    Args:
        session: The session's handle.
        status: Only candidates with this status.
        sort: The order, for example `objective:desc`; by default the order of creation.
        limit: The size of the page, at most 1,000.
        cursor: The `next_cursor` of the page before.

    Returns:
        The page: `items`, and the `next_cursor` unless it is the last one.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import list_candidates

        page = list_candidates(session, sort="objective:desc", limit=5)
        print([item["candidate_id"] for item in page["items"]])
        ```
    """
    return (
        yield from ask(
            operations.candidates(
                session.session_id, status=status, sort=sort, limit=limit, cursor=cursor
            )
        )
    )


alist_candidates = async_twin(list_candidates)


@session_task(run_name="candidate {candidate_id}")
def get_candidate(session: SessionHandle, candidate_id: str) -> Steps[JsonObject]:
    """Read one candidate of a session.

    Args:
        session: The session's handle.
        candidate_id: The candidate's id.

    Returns:
        The candidate with its prompt, rewards and lineage.

    Raises:
        CandidateNotFound: The session has no such candidate.

    Example:
        ```python
        from prefect_mipro.tasks import get_candidate

        candidate = get_candidate(session, "cand_3f9a0c12")
        print(candidate["lineage"])
        ```
    """
    return (yield from _candidate(session, candidate_id))


aget_candidate = async_twin(get_candidate)


@session_task(run_name="add candidate to {session.session_id}", repeatable=False)
def add_candidate(
    session: SessionHandle,
    instruction: str,
    *,
    demonstrations: Sequence[Mapping[str, str]] | None = None,
    label: str | None = None,
) -> Steps[JsonObject]:
    """Add a candidate with a prompt of your own, which then competes with the others.

    The task does not retry by itself: a second run adds a second candidate.

    Args:
        session: The session's handle.
        instruction: The text of its system message, with the same placeholders as the prompt the
            session began with.
        demonstrations: Its worked examples, each with an `input` and an `output`; by default those
            of the champion.
        label: A name for it, shown in the session's status.

    Returns:
        The candidate, with its `candidate_id`.

    Raises:
        InputInvalid: The prompt could not be served: it is empty, or its placeholders differ.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import add_candidate

        candidate = add_candidate(session, "Answer with the intent only.", label="short")
        print(candidate["candidate_id"])
        ```
    """
    operation = operations.add_candidate(
        session.session_id, instruction, demonstrations=demonstrations, label=label
    )
    return (yield from ask(operation))


aadd_candidate = async_twin(add_candidate)


@session_task(run_name="promote {candidate_id}")
def promote_candidate(
    session: SessionHandle, candidate_id: str, *, reason: str | None = None
) -> Steps[SessionStatus]:
    """Make a candidate the session's champion without a duel, for example an earlier champion.

    Args:
        session: The session's handle.
        candidate_id: A candidate of this session; a retired one comes back into play.
        reason: Why, for the record.

    Returns:
        The status afterwards.

    Raises:
        CandidateNotFound: The session has no such candidate.
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import promote_candidate

        status = promote_candidate(session, "cand_3f9a0c12", reason="reviewed by hand")
        ```
    """
    status = yield from ask(operations.promote(session.session_id, candidate_id, reason=reason))
    return without_secret(status, session.session_id)


apromote_candidate = async_twin(promote_candidate)


@session_task(run_name="retire {candidate_id}")
def retire_candidate(
    session: SessionHandle, candidate_id: str, *, reason: str | None = None
) -> Steps[RetiredCandidates]:
    """Take a candidate out of play at once, also out of the rollouts that are pinned to it.

    A champion gives way to the candidate in play that won a duel last, else to the baseline.
    `promote_candidate` brings a retired candidate back.

    Args:
        session: The session's handle.
        candidate_id: A candidate of this session.
        reason: Kept with the candidate, and shown in its status.

    Returns:
        The candidates that were retired (none if it was retired already), and the champion now.

    Raises:
        CandidateNotFound: The session has no such candidate.
        Conflict: The candidate is the baseline, which cannot be retired.

    Example:
        ```python
        from prefect_mipro.tasks import retire_candidate

        report = retire_candidate(session, "cand_3f9a0c12", reason="it is rude")
        print(report.champion_candidate_id)
        ```
    """
    yield from _candidate(session, candidate_id)
    return (yield from ask(operations.retire(candidate_id, reason=reason)))


aretire_candidate = async_twin(retire_candidate)


@session_task(run_name="retire {lever} {version}")
def retire_lever(
    session: SessionHandle, lever: str, version: int, *, reason: str | None = None
) -> Steps[RetiredCandidates]:
    """Retire all candidates that hold a lever version, and make no new ones with it.

    Args:
        session: The session's handle.
        lever: `instruction` or `demonstrations`.
        version: The version's number, as in the lineage of a candidate.
        reason: Kept with the candidates, and shown in their status.

    Returns:
        The candidates that were retired, and the champion now.

    Raises:
        NotFound: The session has no such lever or version.
        Conflict: The baseline holds the version.

    Example:
        ```python
        from prefect_mipro.tasks import retire_lever

        report = retire_lever(session, "demonstrations", 3, reason="it shows a real address")
        print(report.retired_candidates)
        ```
    """
    operation = operations.retire_lever(session.session_id, lever, version, reason=reason)
    return (yield from ask(operation))


aretire_lever = async_twin(retire_lever)


@session_task(run_name="seed evals of {session.session_id}")
def list_seed_evals(
    session: SessionHandle,
    *,
    candidate_id: str | None = None,
    split: str | None = None,
    success: bool | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Steps[JsonObject]:
    """List the rewarded rollouts of a session, each with the seed of its example.

    Args:
        session: The session's handle.
        candidate_id: Only rollouts of this candidate.
        split: Only rollouts of `train`, `validation` or `held_out`.
        success: Only rollouts with the full reward, or only the others.
        limit: The size of the page, at most 1,000.
        cursor: The `next_cursor` of the page before.

    Returns:
        The page: `items`, and the `next_cursor` unless it is the last one.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import list_seed_evals

        page = list_seed_evals(session, candidate_id="cand_3f9a0c12")
        print([(item["seed"], item["reward"]) for item in page["items"]])
        ```
    """
    return (
        yield from ask(
            operations.seed_evals(
                session.session_id,
                candidate_id=candidate_id,
                split=split,
                success=success,
                limit=limit,
                cursor=cursor,
            )
        )
    )


alist_seed_evals = async_twin(list_seed_evals)


def _candidate(session: SessionHandle, candidate_id: str) -> Steps[JsonObject]:
    """The candidate. Raises CandidateNotFound if it belongs to another session."""
    candidate = yield from ask(operations.candidate(candidate_id))
    owner = candidate.get("system_id")
    if owner not in (None, session.session_id):
        raise CandidateNotFound(
            f"candidate {candidate.get('candidate_id')!r} belongs to session {owner}, "
            f"not to {session.session_id}"
        )
    return candidate
