"""Sessions: created once, changed by rule, listed newest first, with an event for each change."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from typing import Any

import pytest

from prefect_mipro.errors import (
    Conflict,
    InputInvalid,
    SessionEnded,
    SessionNotFound,
)
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.server.store.records import SessionFilter
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    START,
    at,
    candidate,
    create,
    demonstrations,
    event_types,
    instruction,
    pin,
    reward,
    rollout,
    session,
)


async def test_a_created_session_reads_back_as_it_was(store: Store) -> None:
    wanted = session(
        config={"deep": {"list": [1, 2.5, None, "ü"]}},
        metadata={"team": "a"},
        correlation_id="c",
        agent_id="agent",
        system_name="name",
    )
    made, created = await store.create_session(
        wanted, [instruction(), demonstrations()], candidate()
    )
    assert created
    assert made == wanted
    assert await store.session("s1") == wanted


async def test_creating_again_returns_the_first_session(store: Store) -> None:
    first = await create(store, metadata={"first": True})
    again, created = await store.create_session(
        session(metadata={"first": False}), [instruction(text="Other.")], candidate()
    )
    assert not created
    assert again == first
    assert [lever.text for lever in await store.levers("s1")] == ["", "Answer."]
    assert await event_types(store) == ["session.created"]


async def test_a_baseline_id_of_another_session_is_a_conflict(store: Store) -> None:
    await create(store)
    with pytest.raises(Conflict):
        await store.create_session(
            session("s2"), [instruction(), demonstrations()], candidate(candidate_id=BASELINE)
        )
    with pytest.raises(SessionNotFound):
        await store.session("s2")


async def test_times_come_back_in_utc_to_the_microsecond(store: Store) -> None:
    local = START.astimezone(timezone(timedelta(hours=5, minutes=30)))
    created = await create(store, created_at=local)
    assert created.created_at == START
    assert created.created_at.tzinfo is UTC


async def test_numbers_that_json_lacks_become_null(store: Store) -> None:
    created = await create(store, metadata={"scores": [float("nan"), float("inf"), 1.0]})
    assert created.metadata == {"scores": [None, None, 1.0]}


async def test_text_that_no_database_encodes_is_kept_as_far_as_it_can_be(store: Store) -> None:
    created = await create(store, metadata={"odd": "\ud800\0"}, system_name="a\0b\ud800c")
    assert created.metadata == {"odd": "\ud800\0"}
    assert created.system_name == "a\N{REPLACEMENT CHARACTER}b?c"


async def test_an_id_that_no_database_encodes_is_invalid_input(store: Store) -> None:
    with pytest.raises(InputInvalid):
        await store.session("\ud800")


async def test_states_follow_each_other_until_a_final_one(store: Store) -> None:
    await create(store)
    paused = await store.set_state("s1", SessionState.PAUSED, at=at(1))
    assert (paused.state, paused.version, paused.updated_at) == (SessionState.PAUSED, 2, at(1))
    running = await store.set_state("s1", SessionState.RUNNING, at=at(2))
    assert running.state is SessionState.RUNNING
    ended = await store.set_state("s1", SessionState.SUCCEEDED, at=at(3), stop_reason="budget")
    assert (ended.state, ended.stop_reason) == (SessionState.SUCCEEDED, "budget")
    assert await event_types(store) == [
        "session.created",
        "session.paused",
        "session.running",
        "session.succeeded",
    ]


async def test_the_present_state_again_is_no_change(store: Store) -> None:
    created = await create(store)
    assert await store.set_state("s1", SessionState.RUNNING, at=at(1)) == created
    ended = await store.set_state("s1", SessionState.CANCELLED, at=at(2))
    assert await store.set_state("s1", SessionState.CANCELLED, at=at(3)) == ended


@pytest.mark.parametrize("final", [SessionState.CANCELLED, SessionState.SUCCEEDED])
async def test_nothing_follows_a_final_state(store: Store, final: SessionState) -> None:
    await create(store)
    ended = await store.set_state("s1", final, at=at(1))
    with pytest.raises(SessionEnded, match="s1"):
        await store.set_state("s1", SessionState.RUNNING, at=at(2))
    assert await store.session("s1") == ended


async def propose(store: Store, rewards: int, **values: Any) -> Session:
    """A round that asked and went well, a second for each reward after the start."""
    told = {"asked": True, "error": None, "warning": None, "usage": Usage(), **values}
    told.setdefault("at", at(rewards))
    return await store.record_proposal_round("s1", rewards=rewards, **told)


async def test_proposal_rounds_count_failures_in_a_row(store: Store) -> None:
    await create(store)
    await propose(store, 20, error="timeout")
    failed = await propose(store, 30, error="timeout")
    assert (failed.proposal_number, failed.proposal_failures) == (2, 2)
    assert (failed.proposal_error, failed.proposal_rewards) == ("timeout", 30)
    went_well = await propose(store, 40)
    assert (went_well.proposal_number, went_well.proposal_failures) == (3, 0)
    assert (went_well.proposal_error, went_well.proposed_at) == (None, at(40))
    assert await event_types(store, since=1) == ["proposal.round"] * 3


async def test_a_round_that_had_nothing_to_look_at_says_why_until_the_next(store: Store) -> None:
    await create(store)
    blind = await propose(store, 20, warning="no texts are kept")
    assert blind.proposal_warning == "no texts are kept"
    (event,) = await store.events("s1", since=1, limit=9)
    assert event.data["warning"] == "no texts are kept"
    assert event.message.endswith("; no texts are kept")
    assert (await propose(store, 30)).proposal_warning is None


async def test_a_round_that_did_not_ask_the_model_leaves_its_failures(store: Store) -> None:
    await create(store)
    await propose(store, 20, error="timeout")
    quiet = await propose(store, 30, asked=False)
    assert (quiet.proposal_failures, quiet.proposal_error) == (1, "timeout")
    assert (quiet.proposal_number, quiet.proposal_rewards) == (2, 30)
    assert quiet.proposed_at == at(30)


async def test_the_tokens_of_the_proposer_model_add_up(store: Store) -> None:
    await create(store)
    await propose(store, 20, usage=Usage(prompt_tokens=100, completion_tokens=30))
    await propose(store, 30, error="no answer", usage=Usage(prompt_tokens=7))
    spent = await store.session("s1")
    assert (spent.proposer_prompt_tokens, spent.proposer_completion_tokens) == (107, 30)


async def test_the_session_counts_rollouts_and_rewards(store: Store) -> None:
    await create(store)
    for number in range(3):
        await pin(store, rollout(f"r{number}"))
    await store.add_reward(reward(rollout_id="r1"))
    await store.add_reward(reward("reward_2", rollout_id="not_pinned_yet"))
    counted = await store.session("s1")
    assert (counted.rollouts, counted.rewards) == (3, 1)


async def test_version_is_the_number_of_the_last_event(store: Store) -> None:
    await create(store)
    await store.set_state("s1", SessionState.PAUSED, at=at(1))
    await store.add_event("s1", "mipro.note", "hello", data={"n": 1}, at=at(2))
    events = await store.events("s1", since=0, limit=10)
    assert [event.seq for event in events] == [1, 2, 3]
    assert (await store.session("s1")).version == 3
    last = events[-1]
    assert (last.event_type, last.message, last.data) == ("mipro.note", "hello", {"n": 1})
    assert last.created_at == at(2)


async def test_events_are_read_in_pieces(store: Store) -> None:
    await create(store)
    for number in range(5):
        await store.add_event("s1", "mipro.note", str(number), data={}, at=at(number))
    assert [e.message for e in await store.events("s1", since=1, limit=2)] == ["0", "1"]
    assert [e.message for e in await store.events("s1", since=5, limit=9)] == ["4"]
    assert await store.events("s1", since=6, limit=9) == ()


async def test_sessions_are_listed_newest_first_page_by_page(store: Store) -> None:
    for number in range(5):
        # Two of them were created at the same instant.
        await create(store, f"p{number}", created_at=at(number // 2))
    seen: list[str] = []
    cursor = None
    for expected in (2, 2, 1):
        page = await store.sessions(SessionFilter(), limit=2, cursor=cursor)
        assert len(page.items) == expected
        seen += [item.session_id for item in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == ["p4", "p3", "p2", "p1", "p0"]


async def test_a_full_last_page_has_no_next_cursor(store: Store) -> None:
    await create(store)
    assert (await store.sessions(SessionFilter(), limit=1)).next_cursor is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (SessionFilter(), {"s1", "s2"}),
        (SessionFilter(state=SessionState.PAUSED), {"s2"}),
        (SessionFilter(kind="mipro_online"), {"s1", "s2"}),
        (SessionFilter(kind="other"), set()),
        (SessionFilter(system_id="s1"), {"s1"}),
        (SessionFilter(system_name="two"), {"s2"}),
        (SessionFilter(created_after=START), {"s2"}),
        (SessionFilter(created_before=at(10)), {"s1"}),
        (SessionFilter(created_after=START.replace(tzinfo=None)), {"s2"}),
    ],
)
async def test_sessions_are_listed_by_filter(
    store: Store, wanted: SessionFilter, expected: set[str]
) -> None:
    await create(store)
    await create(store, "s2", created_at=at(10), system_name="two", state=SessionState.PAUSED)
    page = await store.sessions(wanted, limit=10)
    assert {item.session_id for item in page.items} == expected


@pytest.mark.parametrize("cursor", ["", "%", "bm90IGpzb24", "WzFd", "WyJhIiwiYiJd", "é", "[1]"])
async def test_a_cursor_that_is_not_ours_is_invalid_input(store: Store, cursor: str) -> None:
    with pytest.raises(InputInvalid, match="cursor"):
        await store.sessions(SessionFilter(), limit=1, cursor=cursor)


async def test_unknown_sessions_are_named(store: Store) -> None:
    await create(store, "other")
    calls = [
        store.session("s1"),
        store.set_state("s1", SessionState.PAUSED, at=START),
        store.set_champion("s1", BASELINE, at=START, reason=""),
        store.begin_epoch("s1", at=START, reason=""),
        propose(store, 1),
        store.events("s1", since=0, limit=1),
        store.add_event("s1", "mipro.note", "", data={}, at=START),
    ]
    for call in calls:
        with pytest.raises(SessionNotFound, match="'s1'"):
            await call
