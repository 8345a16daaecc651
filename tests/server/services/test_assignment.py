"""Which candidate serves a rollout while its pin is written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_mipro.errors import StoreFailed, UpstreamUnreachable
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.rollouts import Rollout
from tests.server.services.conftest import Backend

INSTRUCTION = "Name the intent."


async def forgotten_pin(backend: Backend) -> str:
    """A rollout `r` of another candidate than the one that would be chosen; that candidate's id."""
    await backend.create(selection={"strategy": "fixed"})
    added = await backend.sessions.add_candidate("s", instruction=INSTRUCTION)
    candidate_id = str(added["candidate_id"])
    rollout = Rollout(
        session_id="s", rollout_id="r", candidate_id=candidate_id, pinned_at=backend.now[0]
    )
    await backend.store.pin([rollout])
    return candidate_id


def instructions(bodies: list[ChatBody]) -> list[Any]:
    return [body["messages"][0]["content"] for body in bodies]


async def test_an_answer_comes_from_the_candidate_that_the_rollout_was_pinned_to_long_ago(
    backend: Backend,
) -> None:
    pinned_id = await forgotten_pin(backend)
    await backend.call("before")  # from now on models are asked while pins are written
    candidate_id, _ = await backend.call("r")
    assert candidate_id == pinned_id
    asked = instructions(backend.model.bodies)[1:]
    assert asked == ["You classify queries.", INSTRUCTION]
    await backend.call("r")
    assert instructions(backend.model.bodies)[3:] == [INSTRUCTION]


async def test_only_the_call_that_answers_is_recorded(backend: Backend) -> None:
    pinned_id = await forgotten_pin(backend)
    await backend.call("r")
    await backend.journal.flush()
    status = await backend.sessions.status("s")
    calls = {c.candidate_id: c.rollout_count for c in status.candidates.values() if c.rollout_count}
    assert calls == {pinned_id: 1}
    assert (await backend.store.totals("s")).calls == 1


async def test_calls_of_a_forgotten_rollout_that_come_at_once_all_get_its_candidate(
    backend: Backend,
) -> None:
    pinned_id = await forgotten_pin(backend)
    answers = await asyncio.gather(*(backend.call("r") for _ in range(5)))
    assert {candidate_id for candidate_id, _ in answers} == {pinned_id}


async def test_no_answer_goes_out_whose_rollout_cannot_be_pinned(backend: Backend) -> None:
    await backend.create()
    await backend.call("before")
    await backend.store.close()
    with pytest.raises(StoreFailed):
        await backend.call("r")
    live = await backend.live.of("s")
    assert (live.choosing, live.pinning, backend.journal.calls_in_flight) == ({}, {}, 0)
    assert backend.journal.waiting == 1


async def test_an_upstream_that_fails_sooner_than_the_pin_is_written_is_on_record(
    backend: Backend,
) -> None:
    await backend.create()
    backend.model.answer = lambda _: UpstreamUnreachable("nobody there")
    with pytest.raises(UpstreamUnreachable):
        await backend.call("r")
    await backend.journal.flush()
    candidate: Candidate = (await backend.store.candidates("s"))[0]
    assert (candidate.statistics.rollouts, candidate.statistics.failed_calls) == (1, 1)
