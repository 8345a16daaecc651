"""Promotion on a real Prefect server and a real backend: by policy, by a person, and back again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import resume_flow_run

from prefect_mipro.blocks import PromptChampion, load
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import CandidateNotFound, InputInvalid, SessionNotFound
from prefect_mipro.flows.promotion import (
    Policy,
    champion_name,
    choice,
    promote_champion,
    roll_back_champion,
    saved_champion,
)
from prefect_mipro.flows.promotion_page import question
from prefect_mipro.models.champions import PromotionOutcome
from prefect_mipro.tasks import SessionHandle, create_session, promote_candidate, session_status
from prefect_mipro.tasks.connections import connection_to
from tests.plugin.conftest import SYSTEM, artifacts, config, new_id
from tests.plugin.examples import candidate, candidate_id, status
from tests.plugin.test_champion import champion, version

served = pytest.mark.usefixtures("prefect_server")


def chosen(
    policy: Policy, *, in_use: PromptChampion, leader: int = 3, **changes: Any
) -> str | None:
    """From a session whose champion is candidate 2, with another candidate in the lead."""
    told = status(
        candidate(1),
        candidate(2),
        candidate(3, **changes),
        champion=2,
        best_candidate_id=candidate_id(leader),
    )
    return choice(told, in_use, policy, min_probability=0.95, min_rewards=20)


@pytest.mark.parametrize("policy", list(Policy))
def test_the_sessions_champion_is_chosen_where_another_prompt_is_in_use(policy: Policy) -> None:
    assert chosen(policy, in_use=champion(1)) == candidate_id(2)


def test_a_leader_with_enough_evidence_is_shown_to_a_person() -> None:
    in_use = champion(1, 2)
    assert chosen(Policy.APPROVAL, in_use=in_use, probability_better=0.96) == candidate_id(3)


@pytest.mark.parametrize("changes", [{"probability_better": 0.9}, {"reward_count": 19}])
def test_a_leader_with_little_evidence_is_not_shown(changes: dict[str, Any]) -> None:
    enough = {"probability_better": 0.96}
    assert chosen(Policy.APPROVAL, in_use=champion(1, 2), **(enough | changes)) is None


def test_a_policy_never_takes_what_won_no_duel() -> None:
    assert chosen(Policy.AUTOMATIC, in_use=champion(1, 2), probability_better=1.0) is None


def test_what_was_declined_is_not_shown_again() -> None:
    in_use = champion(1).decline(candidate_id(2))
    assert chosen(Policy.APPROVAL, in_use=in_use, leader=2) is None


def test_the_question_shows_what_would_change() -> None:
    asked = question(version(2), version(1))
    assert r"Wording ~~1\.~~ **2\.** Answer" in asked


def test_a_block_gets_a_name_that_prefect_allows() -> None:
    handle = SessionHandle(session_id="Support.Bot:2", backend_url="http://127.0.0.1:1")
    assert champion_name(handle) == "support-bot-2"


@pytest.fixture
def rivals(backend: EmbeddedBackend) -> tuple[SessionHandle, str, str]:
    """A session with its baseline and a prompt that somebody added."""
    session = create_session.fn(config(), session_id=new_id("promo"), backend_url=backend.url)
    with connection_to(session) as connection:
        added = connection.client.add_candidate(
            session.session_id, {"deltas": {"instruction_text": "Name the label, nothing else."}}
        )
        told = connection.client.session_status(session.session_id)
    return session, told.baseline_candidate_id, added["candidate_id"]


Rivals = tuple[SessionHandle, str, str]


@served
@pytest.mark.timeout(400)
def test_the_duels_champion_is_put_to_use_on_record_and_taken_back(rivals: Rivals) -> None:
    session, baseline, better = rivals
    name = champion_name(session)

    first = promote_champion(session, policy=Policy.AUTOMATIC)
    assert first.outcome is PromotionOutcome.UNCHANGED
    assert load(PromptChampion, name).candidate_id == baseline

    promote_candidate.fn(session, better, reason="won a duel")
    taken = promote_champion(session, policy=Policy.AUTOMATIC)
    assert (taken.outcome, taken.candidate_id) == (PromotionOutcome.PROMOTED, better)
    in_use = load(PromptChampion, name)
    assert in_use.render(request="Hi")[0]["content"] == "Name the label, nothing else."
    assert [earlier.candidate_id for earlier in in_use.previous] == [baseline]
    shown = artifacts((taken.artifact_key or "",))[taken.artifact_key or ""]
    assert "\nName the label, nothing else.\n" in shown["data"]
    assert f"\n{SYSTEM}\n" in shown["data"], "what was there before"

    back = roll_back_champion(session)
    assert (back.outcome, back.candidate_id) == (PromotionOutcome.ROLLED_BACK, baseline)
    assert load(PromptChampion, name).candidate_id == baseline
    assert session_status.fn(session).champion_candidate_id == baseline
    promote_candidate.fn(session, better, reason="it won another one")
    again = promote_champion(session, policy=Policy.AUTOMATIC)
    assert again.outcome is PromotionOutcome.UNCHANGED


@served
@pytest.mark.timeout(400)
def test_a_person_declines_and_another_one_approves(rivals: Rivals) -> None:
    session, baseline, better = rivals
    name = champion_name(session)
    with answering(approve=False, candidate_id=better) as asked:
        declined = promote_champion(session, candidate_id=better, timeout_seconds=60)
    assert "\nName the label, nothing else.\n" in asked.get(timeout=60)
    assert declined.outcome is PromotionOutcome.DECLINED
    in_use = load(PromptChampion, name)
    assert (in_use.candidate_id, in_use.declined) == (baseline, (better,))
    assert session_status.fn(session).champion_candidate_id == baseline

    with answering(approve=True, candidate_id=better, approved_by="Ada", reason="reads well"):
        approved = promote_champion(session, candidate_id=better, timeout_seconds=60)
    assert (approved.outcome, approved.reason) == (PromotionOutcome.PROMOTED, "reads well")
    in_use = load(PromptChampion, name)
    assert (in_use.candidate_id, in_use.promoted_by) == (better, "Ada")
    assert session_status.fn(session).champion_candidate_id == better


@served
@pytest.mark.timeout(400)
def test_without_an_answer_the_run_fails_and_nothing_changes(rivals: Rivals) -> None:
    session, baseline, better = rivals
    with pytest.raises(FlowPauseTimeout):
        promote_champion(session, candidate_id=better, timeout_seconds=1)
    in_use = load(PromptChampion, champion_name(session))
    assert (in_use.candidate_id, in_use.declined) == (baseline, ())


@served
@pytest.mark.timeout(400)
@pytest.mark.parametrize("policy", list(Policy))
def test_a_session_that_nobody_has_opened_yet_is_no_failure(
    backend: EmbeddedBackend, policy: Policy
) -> None:
    session = SessionHandle(session_id=new_id("unopened"), backend_url=backend.url)
    summary = promote_champion(session, policy=policy)
    assert (summary.outcome, summary.candidate_id) == (PromotionOutcome.NO_SESSION, None)
    assert summary.reason == (
        f"there is no session {session.session_id} at {backend.url} yet: the first run that opens "
        "it makes it, and the next promotion looks again"
    )
    assert saved_champion(champion_name(session)) is None


@served
@pytest.mark.timeout(400)
def test_a_candidate_that_is_named_must_be_of_a_session(backend: EmbeddedBackend) -> None:
    session = SessionHandle(session_id=new_id("unopened"), backend_url=backend.url)
    with pytest.raises(SessionNotFound, match=session.session_id):
        promote_champion(session, candidate_id="cand_one")


@served
@pytest.mark.timeout(400)
def test_what_was_never_promoted_cannot_be_rolled_back() -> None:
    with pytest.raises(InputInvalid, match=r"'nobodys'; promote_champion makes the first"):
        roll_back_champion("nobodys")


@contextmanager
def answering(**answer: Any) -> Iterator[SimpleQueue[str]]:
    """A person who answers the next question, and what they read in the form."""
    asked: SimpleQueue[str] = SimpleQueue()
    ended = threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(0.3):
                for run in client.read_flow_runs(flow_run_filter=PAUSED):
                    # The form is stored after the state, part by part; the description is last.
                    parts = client.filter_flow_run_input(
                        run.id, "paused-champion-description", limit=1, exclude_keys=set()
                    )
                    if not parts:
                        continue
                    asked.put(json.loads(parts[0].value))
                    resume_flow_run(run.id, run_input=answer)
                    return

    person = threading.Thread(target=copy_context().run, args=(watch,))
    person.start()
    try:
        yield asked
    finally:
        ended.set()
        person.join()


PAUSED = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Paused"])))


@served
@pytest.mark.timeout(400)
def test_a_candidate_of_another_session_is_refused(rivals: Rivals) -> None:
    with pytest.raises(CandidateNotFound, match="has no candidate 'cand_other'"):
        promote_champion(rivals[0], candidate_id="cand_other")


@served
@pytest.mark.timeout(400)
def test_a_block_of_another_session_is_not_overwritten(rivals: Rivals) -> None:
    champion(1).save("taken", overwrite=True)
    with pytest.raises(InputInvalid, match=r"'taken' is that of session support-bot"):
        promote_champion(rivals[0], policy=Policy.AUTOMATIC, champion="taken")
