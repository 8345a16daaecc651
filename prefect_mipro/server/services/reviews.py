"""Reviews: demonstration sets that a person approves or declines before they are served."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_mipro.errors import Conflict, InputInvalid, NotFound
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationSource,
    DemonstrationsValue,
    LeverName,
    LeverVersion,
    Review,
    ReviewState,
)
from prefect_mipro.models.reviews import DemonstrationReview, ReviewDecision, ReviewRequest
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.store.store import Store


class Reviews:
    """The demonstration sets of all sessions that wait for a person, and those decided."""

    def __init__(
        self,
        store: Store,
        beliefs: Beliefs,
        proposals: Proposals,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._beliefs = beliefs
        self._proposals = proposals
        self._clock = clock
        self._new_id = new_id

    async def find(self, session_id: str, state: ReviewState) -> tuple[DemonstrationReview, ...]:
        """The reviews in that state, the oldest set first. Raises SessionNotFound."""
        levers = await self._store.levers(session_id)
        candidates = await self._store.candidates(session_id)
        return tuple(
            DemonstrationReview.of(session_id, version, candidates)
            for version in levers
            if version.review_is(state)
        )

    async def decide(
        self, session_id: str, version: int, request: ReviewRequest
    ) -> DemonstrationReview:
        """Approve or decline a set that waits.

        An approved set competes with the champion's instruction. The repeat of a decision changes
        nothing. Raises NotFound for an unknown set, Conflict for one that does not wait, and
        InputInvalid for positions that it lacks.
        """
        session = await self._store.session(session_id)
        waiting = _version(session_id, await self._store.levers(session_id), version)
        if waiting.review_is(request.decision.state):
            candidates = await self._store.candidates(session_id)
            return DemonstrationReview.of(session_id, waiting, candidates)
        _check_waits(waiting)
        approved = request.decision is ReviewDecision.APPROVE
        kept, left_out = _parted(waiting, request)
        review = Review(
            state=request.decision.state,
            by=request.by,
            reason=request.reason,
            at=self._clock(),
        )
        decided = _with(waiting, kept if approved else left_out, review)
        declined = review.model_copy(update={"state": ReviewState.DECLINED})
        apart = _with(waiting, left_out, declined) if approved and left_out else None
        candidate = None
        if approved:
            champion = await self._store.candidate(session.champion_id)
            candidate = Candidate(
                candidate_id=self._new_id("cand"),
                session_id=session_id,
                number=champion.number + 1,
                instruction_version=champion.instruction_version,
                demonstrations_version=version,
                parent_id=champion.candidate_id,
                created_at=self._clock(),
            )
        await self._store.decide_review(session_id, decided, apart=apart, candidate=candidate)
        self._beliefs.forget(session_id)
        # A declined set leaves room for another.
        self._proposals.consider(session_id)
        return DemonstrationReview.of(session_id, decided, [candidate] if candidate else [])


def _version(session_id: str, levers: Sequence[LeverVersion], number: int) -> LeverVersion:
    for version in levers:
        if (version.lever, version.version) == (LeverName.DEMONSTRATIONS, number):
            return version
    raise NotFound(f"session {session_id!r} has no version {number} of its demonstrations")


def _check_waits(version: LeverVersion) -> None:
    """Raise Conflict for a version that does not wait for a review."""
    review = version.provenance.review
    named = f"version {version.version} of the demonstrations"
    if review is None:
        raise Conflict(f"{named} needs no review; list the session's reviews for those that do")
    if review.state is not ReviewState.WAITING:
        by = f" by {review.by}" if review.by else ""
        way_out = (
            "; retire the lever version to take it out of play"
            if review.state is ReviewState.APPROVED
            else ""
        )
        raise Conflict(f"{named} was {review.state} already{by}{way_out}")


def _parted(
    waiting: LeverVersion, request: ReviewRequest
) -> tuple[tuple[Demonstration, ...], tuple[Demonstration, ...]]:
    """The demonstrations that a person approves, and the others."""
    shown = waiting.demonstrations
    if request.decision is ReviewDecision.DECLINE:
        if request.without:
            raise InputInvalid(
                "without goes with approve: a set that is declined is declined whole"
            )
        return (), shown
    if unknown := [position for position in request.without if position > len(shown)]:
        raise InputInvalid(
            f"without has {unknown[0]}; version {waiting.version} has {len(shown)} demonstrations"
        )
    if len(set(request.without)) == len(shown):
        raise InputInvalid("without names all demonstrations of the set; decline it instead")
    parted: tuple[list[Demonstration], list[Demonstration]] = [], []
    for position, each in enumerate(shown, start=1):
        parted[position in request.without].append(each)
    kept, left_out = parted
    return tuple(map(_reviewed, kept)), tuple(left_out)


def _reviewed(shown: Demonstration) -> Demonstration:
    """The demonstration as a person has approved it; what the caller marked needed no approval."""
    if shown.source is DemonstrationSource.MARKED:
        return shown
    return shown.model_copy(update={"source": DemonstrationSource.REVIEWED})


def _with(version: LeverVersion, shown: tuple[Demonstration, ...], review: Review) -> LeverVersion:
    """The version with other demonstrations and a decided review."""
    return version.model_copy(
        update={
            "value": DemonstrationsValue(demonstrations=shown),
            "provenance": version.provenance.model_copy(
                update={
                    "review": review,
                    "source_trace_ids": tuple(d.trace_id for d in shown if d.trace_id),
                }
            ),
        }
    )
