"""Promotion on a real Prefect server and a real backend: by policy, by a person, and back again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from contextvars import copy_context
from enum import StrEnum
from queue import SimpleQueue
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.client.schemas.objects import State
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import resume_flow_run
from prefect.input import create_flow_run_input
from prefect.states import Cancelled, Crashed

from prefect_mipro.artifacts.publishing import SessionArtifacts, held_out_evaluations
from prefect_mipro.artifacts.reports import artifact_key
from prefect_mipro.blocks import PromptChampion, load
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import CandidateNotFound, InputInvalid, SessionNotFound
from prefect_mipro.flows.approvals import Question, hold
from prefect_mipro.flows.champions import champion_name, saved_champion
from prefect_mipro.flows.promotion import Policy, choice, promote_champion, roll_back_champion
from prefect_mipro.models.champions import PromotionOutcome, PromotionSummary
from prefect_mipro.models.leases import TraceRequest
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.summaries import Evaluation
from prefect_mipro.tasks import (
    SessionHandle,
    add_candidate,
    create_session,
    promote_candidate,
    session_status,
)
from prefect_mipro.tasks.connections import connection_to
from tests.plugin.conftest import SYSTEM, artifacts, config, new_id
from tests.plugin.examples import candidate, candidate_id, status
from tests.plugin.test_champion import champion

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


def test_a_block_gets_a_name_that_prefect_allows() -> None:
    handle = SessionHandle(session_id="Support.Bot:2", backend_url="http://127.0.0.1:1")
    assert champion_name(handle) == "support-bot-2"


@pytest.fixture
def rivals(backend: EmbeddedBackend) -> tuple[SessionHandle, str, str]:
    """A session with its baseline and a prompt that somebody added."""
    session = create_session.fn(config(), session_id=new_id("promo"), backend_url=backend.url)
    added = add_candidate.fn(session, "Name the label, nothing else.")
    told = session_status.fn(session)
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
def test_a_person_puts_it_off_then_declines_and_another_one_approves(rivals: Rivals) -> None:
    session, baseline, better = rivals
    name = champion_name(session)
    with answering(decision="later") as asked:
        later = promote_champion(session, candidate_id=better, timeout_seconds=60)
    page = artifact_key(session.session_id, "question")
    shown = artifacts((page,))[page]
    assert f"(../../artifacts/artifact/{shown['latest_id']})" in asked.get(timeout=60)
    assert "Name the label, nothing else" in shown["data"]
    assert (later.outcome, later.candidate_id) == (PromotionOutcome.POSTPONED, baseline)
    assert load(PromptChampion, name).declined == ()

    with answering(decision="decline"):
        declined = promote_champion(session, candidate_id=better, timeout_seconds=60)
    assert declined.outcome is PromotionOutcome.DECLINED
    in_use = load(PromptChampion, name)
    assert (in_use.candidate_id, in_use.declined) == (baseline, (better,))
    assert session_status.fn(session).champion_candidate_id == baseline

    with answering(decision="approve", approved_by="Ada", reason="r" * 500):
        approved = promote_champion(session, candidate_id=better, timeout_seconds=60)
    assert (approved.outcome, approved.reason) == (PromotionOutcome.PROMOTED, "r" * 500)
    in_use = load(PromptChampion, name)
    assert (in_use.candidate_id, in_use.promoted_by) == (better, "Ada")
    assert session_status.fn(session).champion_candidate_id == better


@served
@pytest.mark.timeout(400)
def test_the_question_shows_what_was_answered_unless_traffic_must_not_be_shown(
    rivals: Rivals,
) -> None:
    session, _, better = rivals
    with connection_to(session) as connection:
        client, session_id = connection.client, session.session_id
        lease = client.lease(session_id, "r1", inputs={"request": "Play | jazz"}, example_id="7")
        client.post_trace(session_id, "r1", TraceRequest(messages=lease.messages, output="music"))
        reward = {"reward_info": {"score": 1.0}, "rollout_id": "r1"}
        client.reward(session_id, RewardRequest.model_validate(reward))
    for show_answers in (True, False):
        with answering(decision="later") as asked:
            promote_champion(session, candidate_id=better, show_answers=show_answers)
        form = asked.get(timeout=60)
        assert (r"| Play \| jazz | " in form) is show_answers
        assert ("music (1.00)" in form) is show_answers


@served
@pytest.mark.timeout(400)
def test_without_an_answer_the_run_fails_nothing_changes_and_the_next_run_asks_again(
    rivals: Rivals,
) -> None:
    session, baseline, better = rivals
    for _ in range(2):
        with pytest.raises(FlowPauseTimeout):
            promote_champion(session, candidate_id=better, timeout_seconds=1)
    in_use = load(PromptChampion, champion_name(session))
    assert (in_use.candidate_id, in_use.declined) == (baseline, ())


@served
@pytest.mark.timeout(400)
def test_of_two_runs_at_once_one_asks_and_the_other_names_it(rivals: Rivals) -> None:
    session, baseline, better = rivals
    promote_champion(session, policy=Policy.AUTOMATIC)

    def run() -> PromotionSummary:
        return promote_champion(session, candidate_id=better, timeout_seconds=120)

    with ThreadPoolExecutor(2) as pool:
        both = {pool.submit(copy_context().run, run) for _ in range(2)}
        ended, (waiting,) = wait_for(both, return_when=FIRST_COMPLETED)
        noted = ended.pop().result()
        with answering(decision="approve") as asked:
            approved = waiting.result()
    assert (noted.outcome, noted.candidate_id) == (PromotionOutcome.ASKED, baseline)
    assert str(asked.get(timeout=60).run_id) in noted.reason
    assert "the question about candidate 2 has been open since 20" in noted.reason
    assert approved.outcome is PromotionOutcome.PROMOTED
    assert load(PromptChampion, champion_name(session)).candidate_id == better


@served
@pytest.mark.timeout(400)
def test_an_approval_that_the_facts_have_overtaken_changes_nothing_and_says_so(
    rivals: Rivals,
) -> None:
    session, baseline, better = rivals
    third = add_candidate.fn(session, "Answer with a label.")["candidate_id"]

    def promote_the_third() -> None:
        promote_candidate.fn(session, third, reason="won a duel")

    with answering(promote_the_third, decision="approve"):
        summary = promote_champion(session, candidate_id=better, timeout_seconds=60)
    assert (summary.outcome, summary.candidate_id) == (PromotionOutcome.STALE, baseline)
    assert summary.reason == "candidate 3 became the session's champion after it was asked"
    assert session_status.fn(session).champion_candidate_id == third


@served
@pytest.mark.timeout(400)
def test_held_out_results_are_found_again_the_newest_of_each_candidate() -> None:
    told = status(candidate(1), candidate(2), candidate(3), session_id=new_id("tested"))
    artifacts = SessionArtifacts(told.session_id)
    first, second, again, third = (
        Evaluation.of(candidate_id(number), [reward, 1.0])
        for number, reward in ((1, 0.0), (2, 0.0), (1, 0.5), (3, 1.0))
    )

    @flow(name="two-nights")
    def publish() -> None:
        artifacts.publish(told, evaluations=[first, second])
        artifacts.publish(told, evaluations=[again, third])
        artifacts.publish(told)

    publish()
    assert set(held_out_evaluations(told.session_id)) == {again, second, third}
    assert held_out_evaluations(new_id("untested")) == ()


class Ended(StrEnum):
    """How a run ended whose question was open."""

    CRASHED = "crashed"
    CANCELLED = "cancelled"
    DELETED = "deleted"
    NO_SLOT = "resumed into a full concurrency limit"


def asker(rivals: Rivals, answer: dict[str, str], end: Ended) -> None:
    """A run that asked, may have been answered, and ended without acting on it."""
    session, baseline, better = rivals

    @flow(name="asker")
    def ask_and_end() -> State[Any]:
        question = hold(
            Question(
                session_id=session.session_id,
                champion=champion_name(session),
                candidate_id=better,
                number=2,
                in_use_id=baseline,
                session_champion_id=baseline,
            )
        )
        if answer:
            create_flow_run_input(f"suspended-{question.key}-response", answer)
        match end:
            case Ended.CRASHED:
                return Crashed()
            case Ended.NO_SLOT:
                return Cancelled(message="Deployment concurrency limit reached.")
            case _:
                return Cancelled()

    run_id = ask_and_end(return_state=True).state_details.flow_run_id
    if run_id and end is Ended.DELETED:
        with get_client(sync_client=True) as client:
            client.delete_flow_run(run_id)


@served
@pytest.mark.timeout(400)
@pytest.mark.parametrize("end", [Ended.CRASHED, Ended.CANCELLED, Ended.DELETED])
def test_the_question_of_a_run_that_has_ended_keeps_nobody_from_asking(
    rivals: Rivals, end: Ended
) -> None:
    session, _, better = rivals
    promote_champion(session, policy=Policy.AUTOMATIC)
    asker(rivals, {}, end)
    with answering(decision="decline"):
        summary = promote_champion(session, candidate_id=better, timeout_seconds=60)
    assert summary.outcome is PromotionOutcome.DECLINED


@served
@pytest.mark.timeout(400)
@pytest.mark.parametrize("end", [Ended.CRASHED, Ended.NO_SLOT])
def test_an_approval_that_its_run_did_not_live_to_act_on_is_not_lost(
    rivals: Rivals, end: Ended
) -> None:
    session, _, better = rivals
    promote_champion(session, policy=Policy.AUTOMATIC)
    asker(rivals, {"decision": "approve", "approved_by": "Ada"}, end)
    summary = promote_champion(session, candidate_id=better, timeout_seconds=1)
    assert (summary.outcome, summary.candidate_id) == (PromotionOutcome.PROMOTED, better)
    assert load(PromptChampion, champion_name(session)).promoted_by == "Ada"


@served
@pytest.mark.timeout(400)
def test_an_approval_whose_run_was_then_cancelled_is_asked_for_again(rivals: Rivals) -> None:
    session, _, better = rivals
    promote_champion(session, policy=Policy.AUTOMATIC)
    asker(rivals, {"decision": "approve"}, Ended.CANCELLED)
    with pytest.raises(FlowPauseTimeout):
        promote_champion(session, candidate_id=better, timeout_seconds=1)


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
        "it makes it, and the next promotion checks again"
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


class Asked(str):
    """What a person read above the form, and in which run."""

    run_id: UUID


@contextmanager
def answering(
    meanwhile: Callable[[], None] = lambda: None, **answer: str
) -> Iterator[SimpleQueue[Asked]]:
    """A person who answers the next question, after `meanwhile`, and what they read in the form."""
    asked: SimpleQueue[Asked] = SimpleQueue()
    ended = threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(0.3):
                for run in client.read_flow_runs(flow_run_filter=PAUSED):
                    # The form is stored after the state, part by part; the description is last.
                    parts = client.filter_flow_run_input(
                        run.id, "paused-champion", limit=9, exclude_keys=set()
                    )
                    texts = [part for part in parts if part.key.endswith("-description")]
                    if not texts:
                        continue
                    read = Asked(json.loads(texts[0].value))
                    read.run_id = run.id
                    asked.put(read)
                    meanwhile()
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
