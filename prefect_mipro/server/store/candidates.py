"""Levers and candidates: their versions, and which are still served."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import (
    Connection,
    RowMapping,
    Text,
    bindparam,
    func,
    insert,
    literal,
    select,
    union_all,
    update,
)

from prefect_mipro.errors import CandidateNotFound, Conflict, SessionNotFound
from prefect_mipro.models.candidates import Candidate, Statistics
from prefect_mipro.models.levers import LeverName, LeverVersion, ReviewState
from prefect_mipro.server.store import duels
from prefect_mipro.server.store.changes import (
    Change,
    changing,
    check_candidates,
)
from prefect_mipro.server.store.records import Withdrawal
from prefect_mipro.server.store.rows import (
    candidate_record,
    candidate_values,
    lever_record,
    lever_values,
)
from prefect_mipro.server.store.schema import (
    UtcTime,
    active,
    candidates,
    lever_versions,
    retired,
    withdrawn,
)

RETIRED_SHOWN = 100

VERSION_OF_LEVER = {
    LeverName.INSTRUCTION: "instruction_version",
    LeverName.DEMONSTRATIONS: "demonstrations_version",
}

_MINE = candidates.c.session_id == bindparam("of_session", type_=Text)
_RETIRED_LAST = (
    select(candidates)
    .where(_MINE, retired)
    .order_by(candidates.c.retired_at.desc())
    .limit(RETIRED_SHOWN)
    .subquery("retired_last")
)
# The next one's number follows from it.
_NEWEST = (
    select(candidates).where(_MINE).order_by(candidates.c.number.desc()).limit(1).subquery("newest")
)
_LISTED = union_all(select(candidates).where(_MINE, active), select(_RETIRED_LAST), select(_NEWEST))
_TOTALS = select(
    *(func.sum(candidates.c[name]).label(name) for name in Statistics.model_fields)
).where(_MINE)
_WITHDRAWN = select(candidates.c.candidate_id).where(_MINE, withdrawn)
_ACTIVE = select(func.count()).select_from(candidates).where(_MINE, active)


def levers_of(connection: Connection, session_id: str) -> tuple[LeverVersion, ...]:
    """All lever versions, by lever and number.

    A version is retired since its last active candidate was retired; one that no candidate uses is
    not retired.
    """
    query = (
        select(lever_versions)
        .where(lever_versions.c.session_id == session_id)
        .order_by(lever_versions.c.lever, lever_versions.c.version)
    )
    users = select(
        candidates.c.instruction_version,
        candidates.c.demonstrations_version,
        candidates.c.retired_at,
    ).where(candidates.c.session_id == session_id)
    rows = connection.execute(query).mappings().all()
    since = _retirements(connection.execute(users).mappings().all())
    # A session has both levers from the start.
    if not rows:
        raise SessionNotFound.of(session_id)
    return tuple(
        lever_record({**row, "retired_at": since.get((row["lever"], row["version"]))})
        for row in rows
    )


def candidates_of(connection: Connection, session_id: str) -> tuple[Candidate, ...]:
    """The active candidates, the 100 retired last and the newest one, ordered by number."""
    # One statement: no candidate is missed, or seen twice, while it is retired.
    rows = connection.execute(_LISTED, {"of_session": session_id}).mappings().all()
    # A session has its baseline from the start.
    if not rows:
        raise SessionNotFound.of(session_id)
    by_number = {row["number"]: row for row in rows}
    return tuple(candidate_record(by_number[number]) for number in sorted(by_number))


def totals(connection: Connection, session_id: str) -> Statistics:
    """The statistics of all candidates of the session together."""
    row = connection.execute(_TOTALS, {"of_session": session_id}).one()
    # Of a session without a baseline there is none. PostgreSQL adds whole numbers up to decimals.
    if row.rollouts is None:
        raise SessionNotFound.of(session_id)
    return Statistics.model_validate(row._asdict())


def count_active(connection: Connection, session_id: str) -> int:
    return connection.scalar(_ACTIVE, {"of_session": session_id}) or 0


def withdrawn_ids(connection: Connection, session_id: str) -> frozenset[str]:
    return frozenset(connection.scalars(_WITHDRAWN, {"of_session": session_id}))


def read_candidate(connection: Connection, candidate_id: str) -> Candidate:
    """The candidate with its statistics. Raises CandidateNotFound."""
    query = select(candidates).where(candidates.c.candidate_id == candidate_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise CandidateNotFound.of(candidate_id)
    return candidate_record(row)


def add(
    connection: Connection,
    session_id: str,
    new_levers: Sequence[LeverVersion],
    new_candidates: Sequence[Candidate],
) -> None:
    """Insert new lever versions and candidates. Raises Conflict if a number is taken."""
    with changing(connection, session_id) as change:
        _add_to(change, new_levers, new_candidates)


def _add_to(
    change: Change, new_levers: Sequence[LeverVersion], new_candidates: Sequence[Candidate]
) -> None:
    connection, session_id = change.connection, change.session_id
    if new_levers:
        connection.execute(
            insert(lever_versions), [lever_values(session_id, lever) for lever in new_levers]
        )
    for version in new_levers:
        if version.review_is(ReviewState.WAITING):
            change.record(
                "mipro.demonstrations.waiting",
                f"demonstrations {version.version} wait for a review",
                data={"demonstrations_version": version.version},
                at=version.created_at,
            )
    for candidate in new_candidates:
        connection.execute(insert(candidates), candidate_values(session_id, candidate))
        change.record(
            "mipro.candidate.added",
            f"candidate {candidate.number} added: {candidate.candidate_id}",
            data={
                "candidate_id": candidate.candidate_id,
                "number": candidate.number,
                "instruction_version": candidate.instruction_version,
                "demonstrations_version": candidate.demonstrations_version,
                "parent_id": candidate.parent_id,
                "label": candidate.label,
            },
            at=candidate.created_at,
        )


def decide(
    connection: Connection,
    session_id: str,
    decided: LeverVersion,
    *,
    apart: LeverVersion | None,
    candidate: Candidate | None,
) -> None:
    """Store the decision on a demonstration set that waits for a review, or raise Conflict.

    `apart` is what an approval left out, a set that is declined; it and the candidate get the next
    numbers.
    """
    version = decided.version
    with changing(connection, session_id) as change:
        sets = {v.version: v for v in levers_of(connection, session_id) if v.lever == decided.lever}
        if not sets[version].review_is(ReviewState.WAITING):
            raise Conflict(f"demonstrations {version} do not wait for a review any more")
        values = lever_values(session_id, decided)
        connection.execute(
            update(lever_versions)
            .where(
                lever_versions.c.session_id == session_id,
                lever_versions.c.lever == decided.lever,
                lever_versions.c.version == version,
            )
            .values(value=values["value"], provenance=values["provenance"])
        )
        review = decided.provenance.review
        if review is not None and review.at is not None:
            change.record(
                f"mipro.demonstrations.{review.state}",
                f"demonstrations {version} {review.state}",
                data={"demonstrations_version": version, "by": review.by, "reason": review.reason},
                at=review.at,
            )
        newest = candidates_of(connection, session_id)[-1].number
        _add_to(
            change,
            [apart.model_copy(update={"version": max(sets) + 1})] if apart else [],
            [candidate.model_copy(update={"number": newest + 1})] if candidate else [],
        )


def retire(
    connection: Connection,
    session_id: str,
    candidate_ids: Sequence[str],
    *,
    at: datetime,
    reason: str,
    ends_duel: bool = False,
) -> None:
    """Take candidates out of play.

    A running duel with one of them goes on, and may still be won, unless this `ends_duel`.
    """
    with changing(connection, session_id) as change:
        check_candidates(connection, session_id, *candidate_ids)
        for candidate_id in dict.fromkeys(candidate_ids):
            updated = connection.execute(
                update(candidates)
                .where(candidates.c.candidate_id == candidate_id, active)
                .values(retired_at=at, retired_reason=reason)
            )
            if updated.rowcount:
                change.record(
                    "mipro.candidate.retired",
                    f"{candidate_id} retired: {reason}",
                    data={"candidate_id": candidate_id, "reason": reason},
                    at=at,
                )
        duel = duels.newest(connection, session_id) if ends_duel else None
        if duel is not None and {duel.champion_id, duel.challenger_id} & set(candidate_ids):
            duels.abandon(change, at=at, reason=reason)


def withdraw(
    connection: Connection,
    session_id: str,
    candidate_ids: Collection[str],
    *,
    at: datetime,
    reason: str,
) -> Withdrawal:
    """Take candidates out of play, and out of the rollouts that are pinned to them.

    A running duel with one of them is abandoned. If the champion leaves, its `successor` takes its
    place. Raises Conflict for the baseline.
    """
    with changing(connection, session_id) as change:
        check_candidates(connection, session_id, *candidate_ids)
        return withdraw_from(change, candidate_ids, at=at, reason=reason)


def withdraw_from(
    change: Change, candidate_ids: Collection[str], *, at: datetime, reason: str
) -> Withdrawal:
    """Take candidates out of play and of the rollouts that are pinned to them."""
    if change["baseline_id"] in candidate_ids:
        raise Conflict(
            f"candidate {change['baseline_id']!r} is the baseline, which the session falls back to "
            "and which cannot be retired; create a session with another prompt instead"
        )
    connection = change.connection
    new = connection.scalars(
        select(candidates.c.candidate_id)
        .where(candidates.c.candidate_id.in_(candidate_ids), candidates.c.withdrawn_at.is_(None))
        .order_by(candidates.c.number)
    ).all()
    for candidate_id in new:
        connection.execute(
            update(candidates)
            .where(candidates.c.candidate_id == candidate_id)
            .values(
                retired_at=func.coalesce(candidates.c.retired_at, literal(at, UtcTime)),
                retired_reason=reason,
                withdrawn_at=at,
            )
        )
        change.record(
            "mipro.candidate.retired",
            f"{candidate_id} retired: {reason}",
            data={"candidate_id": candidate_id, "reason": reason},
            at=at,
        )
    duel = duels.newest(connection, change.session_id)
    if duel is not None and {duel.champion_id, duel.challenger_id} & set(new):
        duels.abandon(change, at=at, reason=reason)
    if change["champion_id"] in new:
        duels.promote(change, duels.successor(connection, change.session_id), at=at, reason=reason)
    return Withdrawal(change["champion_id"], tuple(new))


def check_not_forgotten(connection: Connection, candidate_id: str) -> None:
    """Raise Conflict if one of the candidate's lever versions was emptied."""
    if shows_forgotten(connection, candidate_id):
        raise Conflict(
            f"candidate {candidate_id!r} showed a text that was forgotten, so its prompt is "
            "gone; promote another candidate"
        )


def shows_forgotten(connection: Connection, candidate_id: str) -> bool:
    """Whether one of the candidate's lever versions was emptied."""
    candidate = read_candidate(connection, candidate_id)
    return any(
        version.forgotten and candidate.holds(version)
        for version in levers_of(connection, candidate.session_id)
    )


def _retirements(rows: Sequence[RowMapping]) -> dict[tuple[str, int], datetime]:
    """When each lever version lost its last active candidate; one that has any is left out."""
    since: dict[tuple[str, int], datetime] = {}
    used: set[tuple[str, int]] = set()
    for row in rows:
        for lever, column in VERSION_OF_LEVER.items():
            key = (str(lever), row[column])
            if row["retired_at"] is None:
                used.add(key)
            else:
                since[key] = max(row["retired_at"], since.get(key, row["retired_at"]))
    return {key: at for key, at in since.items() if key not in used}
