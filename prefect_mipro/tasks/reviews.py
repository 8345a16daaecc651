"""Demonstration sets that wait for a person, as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prefect_mipro.client import operations
from prefect_mipro.models.reviews import DemonstrationReview
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.steps import Steps, ask
from prefect_mipro.tasks.twins import async_twin, session_task


@session_task(run_name="reviews of {session.session_id}")
def list_reviews(
    session: SessionHandle, *, state: Literal["waiting", "approved", "declined"] = "waiting"
) -> Steps[tuple[DemonstrationReview, ...]]:
    """List the demonstration sets of a session that wait for a review, or were reviewed.

    Sets wait in sessions with `demonstrations.from_traffic = "reviewed"`.

    Args:
        session: The session's handle.
        state: `waiting`, `approved` or `declined`.

    Returns:
        The sets with their texts, the oldest first.

    Raises:
        SessionNotFound: The backend has no such session.

    Example:
        ```python
        from prefect_mipro.tasks import list_reviews

        for review in list_reviews(session):
            print(review.version, [shown.input for shown in review.demonstrations])
        ```
    """
    return (yield from ask(operations.reviews(session.session_id, state=state)))


alist_reviews = async_twin(list_reviews)


@session_task(run_name="{decision} demonstrations {version}")
def review_demonstrations(
    session: SessionHandle,
    version: int,
    decision: Literal["approve", "decline"],
    *,
    without: Sequence[int] = (),
    by: str = "",
    reason: str = "",
) -> Steps[DemonstrationReview]:
    """Approve or decline a demonstration set that waits for a review.

    An approved set competes as a new candidate. What is left out or declined is not proposed again.

    Args:
        session: The session's handle.
        version: The set's number, as `list_reviews` tells it.
        decision: `approve` or `decline`.
        without: The positions of demonstrations, from 1, that an approval leaves out.
        by: The person's name, for the record.
        reason: Why, for the record.

    Returns:
        The set and its review; after an approval with the new candidate's id.

    Raises:
        NotFound: The session has no such set.
        Conflict: The set needs no review, or was decided on otherwise.
        InputInvalid: `without` goes with a decline, or names positions that the set lacks.

    Example:
        ```python
        from prefect_mipro.tasks import review_demonstrations

        review = review_demonstrations(session, 3, "approve", without=[2], by="ada")
        print(review.candidate_id)
        ```
    """
    operation = operations.review(
        session.session_id, version, decision, without=without, by=by, reason=reason
    )
    return (yield from ask(operation))


areview_demonstrations = async_twin(review_demonstrations)
