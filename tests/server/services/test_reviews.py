"""Texts of the traffic that wait for a person before other users are shown them."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import Conflict, InputInvalid, NotFound
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.levers import DemonstrationSource, LeverName, ReviewState
from prefect_mipro.models.reviews import ReviewRequest
from tests.server.services.conftest import Backend

ROLLOUTS = 60


def label(body: ChatBody) -> str:
    text = str(body["messages"][-1]["content"])
    return "No." if "<instruction>" in text else f"label {int(text.split()[-1]) % 4}"


async def play(
    backend: Backend,
    *,
    first: int = 0,
    count: int = ROLLOUTS,
    distinct: int = 10_000,
    **reward: Any,
) -> None:
    """Rewarded rollouts of users who marked nothing."""
    backend.model.answer = label
    for i in range(first, first + count):
        await backend.call(f"r{i}", text=f"Query: where is parcel {i % distinct}")
        metadata = {"user": f"user {i}"}
        score = float(i % 2 == 0)
        await backend.reward(f"r{i}", score, **{"metadata": metadata, "shareable": False, **reward})
        await backend.proposals.settle()


async def create(backend: Backend, **demonstrations: Any) -> None:
    await backend.create(
        demonstrations={"sizes": [4], "from_traffic": "reviewed", **demonstrations}
    )


async def decide(backend: Backend, version: int, decision: str, **more: Any) -> Any:
    request = ReviewRequest.model_validate({"decision": decision, "by": "ada", **more})
    return await backend.reviews.decide("s", version, request)


async def shown_texts(backend: Backend) -> set[str]:
    """The inputs that some candidate shows."""
    status = await backend.sessions.status("s")
    return {
        shown["input"] for report in status.candidates.values() for shown in report.demonstrations
    }


async def test_a_set_with_unmarked_texts_is_in_no_candidate_before_a_person_approves_it(
    backend: Backend,
) -> None:
    await create(backend)
    await play(backend)
    first, *_ = await backend.reviews.find("s", ReviewState.WAITING)
    assert await shown_texts(backend) == set()
    status = await backend.sessions.status("s")
    assert any("wait" in line and "reviews list s" in line for line in status.warnings)
    approved = await decide(backend, first.version, "approve", reason="harmless")
    assert (approved.state, approved.by, approved.reason) == ("approved", "ada", "harmless")
    report = (await backend.sessions.status("s")).candidates[str(approved.candidate_id)]
    assert [each["input"] for each in report.demonstrations] == [
        each.input for each in first.demonstrations
    ]
    assert {each["source"] for each in report.demonstrations} == {DemonstrationSource.REVIEWED}


async def test_what_a_person_declines_never_comes_again(backend: Backend) -> None:
    await create(backend)
    await play(backend)
    waiting = await backend.reviews.find("s", ReviewState.WAITING)
    for review in waiting:
        await decide(backend, review.version, "decline")
    await play(backend, first=ROLLOUTS)
    declined = {each.input for review in waiting for each in review.demonstrations}
    again = await backend.reviews.find("s", ReviewState.WAITING)
    assert again
    assert declined.isdisjoint(each.input for review in again for each in review.demonstrations)
    assert await shown_texts(backend) == set()


async def test_an_approval_can_leave_texts_out(backend: Backend) -> None:
    await create(backend)
    await play(backend)
    first, *_ = await backend.reviews.find("s", ReviewState.WAITING)
    approved = await decide(backend, first.version, "approve", without=[2])
    out = first.demonstrations[1].input
    assert out not in {each.input for each in approved.demonstrations}
    assert len(approved.demonstrations) == len(first.demonstrations) - 1
    (declined,) = await backend.reviews.find("s", ReviewState.DECLINED)
    assert [each.input for each in declined.demonstrations] == [out]
    assert out not in await shown_texts(backend)


async def test_marked_texts_need_no_review(backend: Backend) -> None:
    await create(backend, max_sets=3)
    await play(backend, shareable=True)
    assert await shown_texts(backend)
    assert await backend.reviews.find("s", ReviewState.WAITING) == ()


async def test_sets_of_approved_texts_are_served_at_once(backend: Backend) -> None:
    await create(backend, sizes=[4])
    # Seven inputs are soon all approved.
    for turn in range(5):
        await play(backend, first=turn * ROLLOUTS, distinct=7)
        for review in await backend.reviews.find("s", ReviewState.WAITING):
            await decide(backend, review.version, "approve")
    unreviewed = [
        {each.source for each in version.demonstrations}
        for version in await backend.store.levers("s")
        if version.demonstrations and version.provenance.review is None
    ]
    assert unreviewed
    assert all(sources == {DemonstrationSource.REVIEWED} for sources in unreviewed)


async def test_no_more_sets_wait_than_the_session_may_have(backend: Backend) -> None:
    await create(backend, max_sets=3)
    await play(backend, count=4 * ROLLOUTS)
    assert len(await backend.reviews.find("s", ReviewState.WAITING)) <= 3


async def test_a_repeated_decision_changes_nothing_and_the_opposite_is_refused(
    backend: Backend,
) -> None:
    await create(backend)
    await play(backend)
    first, *_ = await backend.reviews.find("s", ReviewState.WAITING)
    approved = await decide(backend, first.version, "approve")
    assert await decide(backend, first.version, "approve") == approved
    with pytest.raises(Conflict, match="was approved already by ada; retire the lever version"):
        await decide(backend, first.version, "decline")


async def test_decisions_that_cannot_be_carried_out(backend: Backend) -> None:
    await create(backend)
    await play(backend)
    before = await backend.store.levers("s")
    with pytest.raises(NotFound, match="has no version 99 of its demonstrations"):
        await decide(backend, 99, "approve")
    with pytest.raises(Conflict, match="version 1 of the demonstrations needs no review"):
        await decide(backend, 1, "approve")
    with pytest.raises(InputInvalid, match="without has 5; version 2 has 4 demonstrations"):
        await decide(backend, 2, "approve", without=[5])
    with pytest.raises(InputInvalid, match="decline it instead"):
        await decide(backend, 2, "approve", without=[4, 3, 2, 1])
    with pytest.raises(InputInvalid, match="without goes with approve"):
        await decide(backend, 2, "decline", without=[1])
    with pytest.raises(Conflict, match="decline it instead"):
        await backend.sessions.retire_lever("s", LeverName.DEMONSTRATIONS, 2, reason="no")
    assert await backend.store.levers("s") == before


async def test_decisions_are_events(backend: Backend) -> None:
    await create(backend)
    await play(backend)
    one, two, *_ = await backend.reviews.find("s", ReviewState.WAITING)
    await decide(backend, one.version, "approve")
    await decide(backend, two.version, "decline")
    kinds = [event.event_type for event in await backend.sessions.events("s", since=0, limit=900)]
    assert kinds.count("mipro.demonstrations.waiting") == 2
    assert kinds.count("mipro.demonstrations.approved") == 1
    assert kinds.count("mipro.demonstrations.declined") == 1
