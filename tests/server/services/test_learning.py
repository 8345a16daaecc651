"""The whole loop on a real store: proposals, demonstrations, duel, champion."""

from __future__ import annotations

import json
import zlib

import pytest

from prefect_mipro.errors import UpstreamUnreachable
from prefect_mipro.models.candidates import DuelState
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.levers import LeverActor, LeverName
from tests.server.services.conftest import Answer, Backend

LABELS = ("refund", "delivery", "login", "price")


def query(i: int) -> tuple[str, str]:
    label = LABELS[i % len(LABELS)]
    words = f"{zlib.crc32(str(i).encode()):x}"
    return f"Query: my {label} trouble {words}", label


def policy(body: ChatBody) -> str:
    """Right with one chance in five, with demonstrations nearly always; also the proposer."""
    messages = body["messages"]
    if "<instruction>" in str(messages[-1]["content"]):
        return "<instruction>Say which of the four intents the query has.</instruction>"
    text = str(messages[-1]["content"])
    shown = sum(message["role"] == "assistant" for message in messages)
    luck = zlib.crc32(f"{text}{shown}".encode()) / 2**32
    if luck < (0.9 if shown else 0.2):
        return next(label for label in LABELS if label in text)
    return "I cannot tell."


async def run(backend: Backend, first: int, last: int) -> float:
    """Rollouts one after the other; the mean reward they earned."""
    earned = 0.0
    for i in range(first, last):
        text, label = query(i)
        _, answer = await backend.call(f"r{i}", text=text, example_id=str(i))
        score = float(answer["choices"][0]["message"]["content"] == label)
        await backend.reward(f"r{i}", score, metadata={"expected": label})
        await backend.proposals.settle()
        earned += score
    return earned / (last - first)


async def test_a_prompt_gets_better_and_wins_its_duel(backend: Backend) -> None:
    await backend.create()
    backend.model.answer = policy
    before = await run(backend, 0, 20)
    await run(backend, 20, 200)
    after = await run(backend, 200, 240)
    status = await backend.sessions.status("s")
    champion = status.candidates[status.champion_candidate_id]
    assert after > before + 0.4
    assert champion.candidate_id != status.baseline_candidate_id
    assert champion.demonstrations
    duel = await backend.store.duel("s")
    assert duel is not None
    first = next(
        e
        for e in await backend.store.events("s", since=0, limit=5000)
        if e.event_type == "mipro.champion.promoted"
    )
    assert first.data


async def test_where_no_texts_are_kept_prompts_still_compete_and_none_of_them_quotes(
    backend: Backend,
) -> None:
    await backend.create(trace_content="off")
    backend.model.answer = policy
    await run(backend, 0, 60)
    levers = await backend.store.levers("s")
    assert sum(version.lever is LeverName.INSTRUCTION for version in levers) > 1
    assert [v.demonstrations for v in levers if v.lever is LeverName.DEMONSTRATIONS] == [()]
    for asked in backend.model.bodies:
        prompt = str(asked["messages"])
        if "<instruction>" in prompt:
            assert "trouble" not in prompt


async def test_demonstrations_come_from_expected_answers_and_never_from_held_out_examples(
    backend: Backend,
) -> None:
    await backend.create(val_seeds=list(range(10)), online_pool=list(range(10, 100)))
    backend.model.answer = policy
    await run(backend, 0, 60)
    held_out = {query(i)[0] for i in range(10)}
    sets = [v for v in await backend.store.levers("s") if v.lever is LeverName.DEMONSTRATIONS]
    shown = [demo for version in sets for demo in version.demonstrations]
    assert shown
    assert not held_out & {demo.input for demo in shown}
    assert {demo.output for demo in shown} <= set(LABELS)


async def test_every_version_names_its_parent_its_actor_and_its_template(
    backend: Backend,
) -> None:
    await backend.create()
    backend.model.answer = policy
    await run(backend, 0, 40)
    levers = await backend.store.levers("s")
    for lever in LeverName:
        numbers = [version.version for version in levers if version.lever is lever]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 1
    new = [version for version in levers if version.version > 1]
    assert all(version.parent_version for version in new)
    assert all(version.provenance.actor is LeverActor.OPTIMIZER for version in new)
    assert all(version.provenance.template_version for version in new)


@pytest.mark.parametrize(
    "answer", [UpstreamUnreachable("down"), Answer(b"busy", status=503), Answer(b"{}")]
)
async def test_a_failing_proposer_never_stops_serving_and_the_status_says_why(
    backend: Backend, answer: Answer | Exception
) -> None:
    def half(body: ChatBody) -> str | Answer | Exception:
        asked = "<instruction>" in json.dumps(body["messages"])
        return answer if asked else policy(body)

    await backend.create(proposer={"instructions_per_batch": 4})
    backend.model.answer = half
    await run(backend, 0, 45)
    status = await backend.sessions.status("s")
    assert status.reward_count == 45
    assert status.proposer.rounds >= 1
    if not (isinstance(answer, Answer) and answer.status == 200):
        assert status.proposer.failures >= 1
        assert status.proposer.error
    assert len(status.candidates) > 1


async def test_the_proposer_sees_the_reference_pool_only(backend: Backend) -> None:
    pool = [3, 6, 9]
    await backend.create(reference_pool=pool, proposer={"instructions_per_batch": 4})
    backend.model.answer = policy
    await run(backend, 0, 45)
    asked = [
        str(body["messages"][-1]["content"])
        for body in backend.model.bodies
        if "<instruction>" in str(body["messages"][-1]["content"])
    ]
    shown = {i for i in range(45) for text in asked if f'"{query(i)[0]}"' in text}
    assert shown
    assert shown <= set(pool)


async def test_instruction_only_makes_no_demonstrations(backend: Backend) -> None:
    await backend.create(proposer={"mode": "instruction_only"})
    backend.model.answer = policy
    await run(backend, 0, 45)
    levers = await backend.store.levers("s")
    assert {v.lever for v in levers if v.version > 1} == {LeverName.INSTRUCTION}


async def test_switched_off_proposals_make_none(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    backend.model.answer = policy
    await run(backend, 0, 30)
    status = await backend.sessions.status("s")
    assert len(status.candidates) == 1
    assert status.proposer.waiting_for == "nothing: proposals are off"


async def test_the_cap_on_candidates_holds(backend: Backend) -> None:
    await backend.create(online_proposer_max_candidates=5)
    backend.model.answer = policy
    await run(backend, 0, 130)
    candidates = await backend.store.candidates("s")
    assert sum(candidate.active for candidate in candidates) <= 5


async def test_a_retired_candidate_never_challenges(backend: Backend) -> None:
    await backend.create(online_proposer_mode="off")
    item = await backend.sessions.add_candidate("s", instruction="Say the intent.", label=None)
    good = str(item["candidate_id"])
    for i in range(40):
        await backend.call(f"r{i}")
        rollout = await backend.rollouts.find("s", f"r{i}")
        await backend.reward(f"r{i}", float(rollout.candidate_id == good))
    await backend.store.retire("s", [good], at=backend.now[0], reason="by hand")
    for i in range(40, 100):
        await backend.call(f"r{i}")
        await backend.reward(f"r{i}", 0.0)
    assert await backend.store.duel("s") is None


async def test_a_duel_is_reported_while_it_runs(backend: Backend) -> None:
    await backend.create()
    backend.model.answer = policy
    status = await backend.sessions.status("s")
    for i in range(0, 300, 5):
        await run(backend, i, i + 5)
        status = await backend.sessions.status("s")
        if status.duel:
            break
    assert status.duel is not None
    assert status.duel.state in (DuelState.RUNNING, DuelState.WON)
    assert status.duel.threshold == pytest.approx(20.0)
