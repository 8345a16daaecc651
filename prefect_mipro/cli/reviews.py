"""The demonstration sets of a session that wait for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from prefect_mipro.cli.exits import PROGRAM
from prefect_mipro.cli.options import BackendOptions, Count, Session, Text
from prefect_mipro.cli.output import Output, moment

if TYPE_CHECKING:
    from prefect_mipro.models.reviews import DemonstrationReview

app = App(
    name="reviews",
    help="""\
Decide which texts of users other users are shown.

With demonstrations.from_traffic = "reviewed" a set of demonstrations with texts
that were not marked as shareable waits here until it is approved or declined.

Examples
  prefect-mipro reviews list support-bot
  prefect-mipro reviews approve support-bot 3 --without 2 --by ada
  prefect-mipro reviews decline support-bot 4 --reason "names a customer"
""",
)

Version = Annotated[Count, Parameter(help="The set's number.")]
By = Annotated[Text, Parameter(help="Your name, for the record.")]
Reason = Annotated[Text, Parameter(help="Kept with the decision.")]


@app.command(name="list")
def list_(
    session: Session,
    /,
    *,
    state: Annotated[
        Literal["waiting", "approved", "declined"], Parameter(help="Which sets to show.")
    ] = "waiting",
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Show the sets that wait, whole, or those that were approved or declined.

    Examples
      prefect-mipro reviews list support-bot
      prefect-mipro reviews list support-bot --state declined --json
    """
    output = backend.output
    with backend.client() as client:
        found = client.reviews(session, state=state)
    if output.as_json:
        items = [review.model_dump(mode="json") for review in found]
        output.document({"session_id": session, "items": items})
        return
    if not found:
        output.line(f"no demonstration sets are {state}")
    for review in found:
        _show(output, review)
    if found and state == "waiting":
        output.line(f"approve: {PROGRAM} reviews approve {session} {found[0].version}")


@app.command
def approve(
    session: Session,
    version: Version,
    /,
    *,
    without: Annotated[
        str, Parameter(help="Positions of demonstrations to leave out, such as 2,5.")
    ] = "",
    by: By = "",
    reason: Reason = "",
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Let a set compete, as a candidate with the champion's instruction.

    What --without leaves out is not proposed again.

    Examples
      prefect-mipro reviews approve support-bot 3
      prefect-mipro reviews approve support-bot 3 --without 2,5 --by ada
    """
    with backend.client() as client:
        review = client.review(
            session, version, "approve", without=_positions(without), by=by, reason=reason
        )
    backend.output.outcome(
        review.model_dump(mode="json"),
        f"set {version} is approved with {len(review.demonstrations)} demonstrations; "
        f"{review.candidate_id} competes with it",
    )


@app.command
def decline(
    session: Session,
    version: Version,
    /,
    *,
    by: By = "",
    reason: Reason = "",
    backend: BackendOptions = BackendOptions(),
) -> None:
    """Decline a set: none of its texts is proposed again.

    Examples
      prefect-mipro reviews decline support-bot 4
      prefect-mipro reviews decline support-bot 4 --reason "names a customer" --by ada
    """
    with backend.client() as client:
        review = client.review(session, version, "decline", by=by, reason=reason)
    backend.output.outcome(
        review.model_dump(mode="json"),
        f"set {version} is declined; its {len(review.demonstrations)} texts are not shown",
    )


def _show(output: Output, review: DemonstrationReview) -> None:
    facts = {
        "set": str(review.version),
        "state": review.state,
        "made (UTC)": moment(review.created_at),
        "by": review.by,
        "reason": review.reason,
        "candidate": review.candidate_id or "",
    }
    output.facts({name: fact for name, fact in facts.items() if fact})
    for position, shown in enumerate(review.demonstrations, start=1):
        origin = f", rollout {shown.rollout_id}" if shown.rollout_id else ""
        output.passage(
            f"demonstration {position} ({shown.source}{origin})",
            f"user: {shown.input}\nassistant: {shown.output}",
        )


def _positions(told: str) -> list[int]:
    """The numbers of `2,5`. Raises InputInvalid."""
    from prefect_mipro.errors import InputInvalid

    try:
        return [int(position) for position in told.split(",") if position.strip()]
    except ValueError:
        raise InputInvalid(
            f"--without is {told!r}; give positions with commas between, such as 2,5"
        ) from None
