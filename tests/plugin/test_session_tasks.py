"""The tasks of a session against a real backend, each in both of its twins."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Failed

from prefect_mipro import MiproOnlineSession, tasks
from prefect_mipro.client import operations
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import (
    AnswerInvalid,
    BackendUnreachable,
    CandidateNotFound,
    ConfigInvalid,
    InputInvalid,
    KeyMissing,
    KeyRejected,
    MiproError,
    Overloaded,
    RolloutNotFound,
    SessionEnded,
    SessionNotFound,
    StoreFailed,
)
from prefect_mipro.models.judgements import Judgement
from prefect_mipro.models.sessions import ForgetReport, SessionState, SessionUrls
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.connections import connection_to
from prefect_mipro.tasks.requests import without_secret
from tests.fake_upstream import FakeUpstream
from tests.plugin.conftest import SYSTEM, config, new_id
from tests.plugin.test_run_logs import lines_of
from tests.prefect_contents import task_runs_of

Call = Callable[..., Any]

NAMES = (
    "add_candidate begin_epoch cancel_session create_session delete_session forget_data "
    "get_candidate list_candidates list_reviews list_rollouts list_seed_evals list_traces "
    "pause_session promote_candidate report_reward resume_session retire_candidate retire_lever "
    "review_demonstrations rotate_url session_status session_urls"
).split()


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Call the task of that name, or its twin, without Prefect around it."""

    def called(name: str, *args: Any, **kwargs: Any) -> Any:
        called_task: Task[..., Any] = getattr(tasks, f"{request.param}{name}")
        result = called_task.fn(*args, **kwargs)
        return asyncio.run(result) if request.param else result

    return called


@pytest.mark.parametrize("name", NAMES)
def test_session_tasks_are_neither_cached_nor_stored(name: str) -> None:
    found = getattr(tasks, name)
    assert found.cache_policy == NO_CACHE
    assert found.persist_result is False


@pytest.mark.parametrize(
    ("error", "repeats"),
    [
        (BackendUnreachable("x"), True),
        (Overloaded("x"), True),
        (StoreFailed("x"), True),
        (KeyRejected("x"), False),
        (ConfigInvalid("x"), False),
        (AnswerInvalid("x"), False),
        (SessionNotFound("x"), False),
        (RuntimeError("x"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_goes_away_by_itself_is_repeated(error: Exception, repeats: bool) -> None:
    status_task = tasks.session_status
    assert callable(status_task.retry_condition_fn)
    run = TaskRun(task_key="x", dynamic_key="0")
    assert status_task.retry_condition_fn(status_task, run, Failed(data=error)) is repeats


def test_creating_with_the_same_id_resumes(call: Call, backend: EmbeddedBackend) -> None:
    session_id = new_id()
    one = call("create_session", config(), session_id=session_id, backend_url=backend.url)
    other = call("create_session", config(), session_id=session_id, backend_url=backend.url)
    assert one == other
    assert one.session_id == session_id


def test_without_an_id_the_config_names_the_session(call: Call, backend: EmbeddedBackend) -> None:
    system_id = new_id("system")
    session = call("create_session", config(system_id=system_id), backend_url=backend.url)
    assert session.session_id == system_id


def test_without_any_id_each_session_is_new(call: Call, backend: EmbeddedBackend) -> None:
    sessions = [call("create_session", config(), backend_url=backend.url) for _ in range(2)]
    assert sessions[0].session_id != sessions[1].session_id


def test_overrides_are_applied(call: Call, backend: EmbeddedBackend) -> None:
    with pytest.raises(ConfigInvalid, match="offline"):
        call(
            "create_session",
            config(),
            backend_url=backend.url,
            overrides={"prompt_learning.mipro.mode": "offline"},
        )


def test_an_unusable_id_is_refused_with_the_rule(call: Call, backend: EmbeddedBackend) -> None:
    with pytest.raises(InputInvalid, match=r"'a b/c' is not usable in a URL; use up to 200"):
        call("create_session", config(), session_id="a b/c", backend_url=backend.url)


def test_no_backend_at_all_is_refused_with_the_ways_out(call: Call) -> None:
    with pytest.raises(InputInvalid, match="MIPRO_BACKEND_URL"):
        call("create_session", config())


@pytest.mark.parametrize("variable", ["MIPRO_BACKEND_URL", "SYNTH_BACKEND_URL"])
def test_the_environment_names_the_backend(
    call: Call, variable: str, backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, backend.url)
    assert call("create_session", config()).backend_url == backend.url


def test_a_remote_backend_without_a_key_is_refused(call: Call) -> None:
    with pytest.raises(KeyMissing, match=r"mipro\.example\.com"):
        call("create_session", config(), backend_url="https://mipro.example.com")


def test_a_backend_elsewhere_gets_the_key_of_the_environment(
    call: Call, backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By another name the backend is not known as this process's own.
    url = backend.url.replace("127.0.0.1", "localhost")
    with pytest.raises(KeyRejected):
        call("create_session", config(), backend_url=url)
    monkeypatch.setenv("MIPRO_API_KEY", backend.api_key.get_secret_value())
    assert call("create_session", config(), backend_url=url).backend_url == url


def test_status_tells_how_the_session_stands(call: Call, session: SessionHandle) -> None:
    status = call("session_status", session)
    assert status.session_id == session.session_id
    assert status.status is SessionState.RUNNING


def test_no_result_holds_the_proxy_secret_or_the_key(
    call: Call, session: SessionHandle, backend: EmbeddedBackend
) -> None:
    shown = " ".join(
        [
            session.model_dump_json(),
            call("session_status", session).model_dump_json(),
            call("session_urls", session).model_dump_json(),
            call("pause_session", session).model_dump_json(),
        ]
    )
    assert f"/{session.session_id}." not in shown
    assert backend.api_key.get_secret_value() not in shown


def test_urls_are_those_of_the_session(call: Call, session: SessionHandle) -> None:
    urls = call("session_urls", session)
    assert urls.online_url == f"{session.backend_url}/api/mipro/v1/{session.session_id}"
    assert urls.chat_completions_url == f"{urls.online_url}/chat/completions"


def test_only_the_secret_is_taken_out_of_a_url() -> None:
    session_id = "bot.0123456789abcdef0123456789abcdef"
    secret = "f" * 32
    url = f"http://h/api/mipro/v1/{session_id}.{secret}"
    urls = SessionUrls(
        online_url=url, proxy_url=url, chat_completions_url=f"{url}/chat/completions"
    )
    assert without_secret(urls, session_id).chat_completions_url == (
        f"http://h/api/mipro/v1/{session_id}/chat/completions"
    )


def test_a_session_is_paused_resumed_and_cancelled(call: Call, session: SessionHandle) -> None:
    states = [
        call(name, session).status for name in ("pause_session", "resume_session", "cancel_session")
    ]
    assert states == [SessionState.PAUSED, SessionState.RUNNING, SessionState.CANCELLED]


def test_a_cancelled_session_does_not_resume(call: Call, session: SessionHandle) -> None:
    call("cancel_session", session)
    with pytest.raises(SessionEnded):
        call("resume_session", session)


def test_a_deleted_session_is_gone_and_deleting_it_again_does_no_harm(
    call: Call, session: SessionHandle
) -> None:
    for _ in range(2):
        call("delete_session", session)
    with pytest.raises(SessionNotFound):
        call("session_status", session)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("twin", ["", "a"], ids=["sync", "async"])
def test_data_of_a_user_is_forgotten_and_prefect_does_not_learn_the_name(
    twin: str, session: SessionHandle
) -> None:
    user = "ada.lovelace@example.invalid"
    tasks.run_rollout.fn(
        "play jazz #music",
        session=session,
        program=lambda rollout, text: rollout.complete([{"role": "user", "content": text}]),
        reward=lambda _text, _answer: Judgement(score=1.0, metadata={"user": user}),
    )
    forget = getattr(tasks, f"{twin}forget_data")

    @flow
    def erase() -> tuple[ForgetReport, ForgetReport, str]:
        with pytest.raises(InputInvalid, match="name exactly one of"):
            _awaited(forget(session, user=user, rollout_id="hers"))
        would, done = (_awaited(forget(session, user=user, dry_run=dry)) for dry in (True, False))
        return would, done, str(flow_run.id)

    with lines_of("prefect", level=logging.DEBUG) as lines:
        would, done, run_id = erase()
    assert would.rollouts == 1
    assert done == would.model_copy(update={"dry_run": False})
    assert _awaited(forget.fn(session, user=user)).rollouts == 0
    with get_client(sync_client=True) as client:
        runs = task_runs_of(client, run_id, ended=3)
    assert f"forget data of {session.session_id}" in runs
    assert lines
    assert user not in runs + "".join(lines) + done.model_dump_json()


def test_candidates_and_lever_versions_are_retired(call: Call, session: SessionHandle) -> None:
    added = [
        call("add_candidate", session, f"Classify. Rule {number}.")["candidate_id"]
        for number in (1, 2)
    ]
    baseline_id = call("session_status", session).baseline_candidate_id
    call("promote_candidate", session, added[0])
    report = call("retire_candidate", session, added[0], reason="it is rude")
    assert report.retired_candidates == (added[0],)
    assert (report.champion_candidate_id, report.champion_replaced) == (baseline_id, True)
    version = call("get_candidate", session, added[1])["lineage"]["instruction"]["version"]
    assert call("retire_lever", session, "instruction", version).retired_candidates == (added[1],)
    other = session.model_copy(update={"session_id": new_id()})
    with pytest.raises(CandidateNotFound, match="belongs to session"):
        call("retire_candidate", other, added[1])


def test_texts_of_users_are_shown_only_after_a_review(call: Call, backend: EmbeddedBackend) -> None:
    body = config(demonstrations={"from_traffic": "reviewed", "sizes": [2]})
    session = call("create_session", body, session_id=new_id(), backend_url=backend.url)
    job = {
        "session": session,
        "program": lambda rollout, text: rollout.complete(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        ),
        "reward": lambda _text, _answer: 1.0,
    }
    waiting: Any = ()
    for number in range(60):
        tasks.run_rollout.fn(f"play track {number} #music", rollout_id=f"r{number}", **job)
        if waiting := call("list_reviews", session):
            break
    approved = call("review_demonstrations", session, waiting[0].version, "approve", by="ada")
    assert approved.candidate_id in call("session_status", session).candidates
    assert call("list_reviews", session, state="approved") == (approved,)


def test_the_worst_rollouts_are_listed_and_their_calls_shown(
    call: Call, session: SessionHandle
) -> None:
    for rollout_id in ("good", "bad"):
        tasks.run_rollout.fn(
            f"play {rollout_id} jazz",
            session=session,
            rollout_id=rollout_id,
            program=lambda rollout, text: rollout.complete([{"role": "user", "content": text}]),
            reward=lambda text, _answer: 1.0 if "good" in text else 0.0,
        )
    worst, _ = call("list_rollouts", session, order="worst")
    assert (worst.rollout_id, worst.reward) == ("bad", 0.0)
    (trace,) = call("list_traces", session, "bad")
    assert trace.input == "play bad jazz"
    assert call("list_traces", session, trace.trace_id) == (trace,)
    with pytest.raises(RolloutNotFound, match="'never'"):
        call("list_traces", session, "never")


def _awaited(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def test_an_earlier_candidate_is_made_champion_again_and_an_epoch_begun(
    call: Call, session: SessionHandle
) -> None:
    baseline_id = call("session_status", session).baseline_candidate_id
    status = call("promote_candidate", session, baseline_id, reason="back to our own prompt")
    assert status.champion_candidate_id == baseline_id
    assert call("begin_epoch", session, reason="new model").epoch == 2
    with pytest.raises(CandidateNotFound):
        call("promote_candidate", session, "cand_of_nobody")


def test_a_reward_reaches_its_rollout_and_counts_once(
    call: Call, session: SessionHandle, model: FakeUpstream
) -> None:
    tasks.run_rollout.fn(
        "play jazz #music",
        session=session,
        program=lambda rollout, text: rollout.complete([{"role": "user", "content": text}]),
        reward=lambda _text, _answer: 1.0,
        rollout_id="first",
    )
    receipts = [
        call("report_reward", session, 1.0, rollout_id="first", expected="music", example_id="7")
        for _ in range(2)
    ]
    assert [receipt.duplicate for receipt in receipts] == [True, True]
    assert call("session_status", session).reward_count == 1


def test_report_reward_takes_all_that_update_reward_takes(
    call: Call, session: SessionHandle
) -> None:
    baseline_id = call("session_status", session).baseline_candidate_id
    receipt = call(
        "report_reward",
        session,
        {"score": 0.5, "feedback": "too long"},
        rollout_id="elsewhere",
        candidate_id=baseline_id,
        correlation_id="conversation",
        trace_ref="trace-in-our-own-system",
        artifact={"report": "a report"},
        metadata={"user": "u1"},
        stop=True,
    )
    assert (receipt.attached, receipt.candidate_id) == (True, baseline_id)
    assert call("session_status", session).status is SessionState.SUCCEEDED
    with (
        connection_to(session) as connection,
        connection.client.stream(operations.export_session(session.session_id)) as lines,
    ):
        exported = b"".join(lines).decode()
    for text in ("too long", "conversation", "trace-in-our-own-system", "a report", "u1"):
        assert f'"{text}"' in exported
    given = inspect.signature(MiproOnlineSession.update_reward).parameters.keys()
    taken = inspect.signature(tasks.report_reward.fn).parameters.keys()
    assert given - taken == {"self", "reward_info"}


def test_a_reward_of_the_wrong_kind_is_refused_before_it_is_sent(
    call: Call, session: SessionHandle
) -> None:
    with pytest.raises(InputInvalid, match="stop"):
        call("report_reward", session, 1.0, rollout_id="r1", stop="yes")


@pytest.mark.usefixtures("prefect_server")
def test_a_retry_without_a_rollout_id_does_not_reward_the_next_rollout(
    session: SessionHandle,
) -> None:
    for rollout_id in ("first", "second"):
        tasks.lease_prompt.fn(session, rollout_id, inputs={"request": "play jazz"})

    @task(retries=1)
    def interrupted() -> str | None:
        receipt = tasks.report_reward.fn(session, 1.0)
        if task_run.get_run_count() == 1:
            raise ConnectionError("after the reward was taken")
        return receipt.rollout_id

    @flow
    def rewarded() -> str | None:
        return interrupted()

    assert rewarded() == "second"
    assert tasks.session_status.fn(session).reward_count == 1


def test_a_prompt_of_ones_own_competes_with_examples_of_its_own(
    call: Call, session: SessionHandle
) -> None:
    shown = {"input": "rain?", "output": "weather"}
    added = call("add_candidate", session, "Name the intent.", demonstrations=[shown], label="mine")
    report = call("session_status", session).candidates[added["candidate_id"]]
    assert (report.instruction, report.label) == ("Name the intent.", "mine")
    assert [shown | each for each in report.demonstrations] == report.demonstrations
    with pytest.raises(InputInvalid, match="empty"):
        call("add_candidate", session, " ")


def test_adding_a_candidate_is_not_retried_because_another_run_adds_another() -> None:
    assert tasks.add_candidate.retries == tasks.aadd_candidate.retries == 0


def test_a_rotated_url_is_refused_and_the_handle_goes_on(
    call: Call, session: SessionHandle
) -> None:
    with connection_to(session) as connection:
        leaked = connection.client.session_urls(session.session_id).online_url
    urls = call("rotate_url", session)
    assert urls == call("session_urls", session)
    asked = {"model": "m", "messages": [{"role": "user", "content": "play jazz"}]}
    answer = httpx.post(f"{leaked}/r1/chat/completions", json=asked, trust_env=False)
    assert answer.status_code == 401
    with session.rollout() as rollout:
        assert rollout.ask({"request": "play jazz"})


def test_candidates_are_listed_and_found(call: Call, session: SessionHandle) -> None:
    (item,) = call("list_candidates", session)["items"]
    assert (
        call("get_candidate", session, item["candidate_id"])["candidate_id"]
        == (item["candidate_id"])
    )


def test_a_candidate_of_another_session_is_not_found(
    call: Call, session: SessionHandle, backend: EmbeddedBackend
) -> None:
    other = call("create_session", config(), backend_url=backend.url)
    (item,) = call("list_candidates", other)["items"]
    with pytest.raises(CandidateNotFound, match="belongs to session"):
        call("get_candidate", session, item["candidate_id"])


def test_seed_evals_are_the_rewarded_rollouts_of_numbered_examples(
    call: Call, session: SessionHandle
) -> None:
    tasks.run_rollout.fn(
        {"seed": 3, "text": "play jazz #music"},
        session=session,
        program=lambda rollout, row: rollout.complete([{"role": "user", "content": row["text"]}]),
        reward=lambda _row, _answer: 0.5,
    )
    (item,) = call("list_seed_evals", session)["items"]
    assert (item["seed"], item["reward"]) == (3, 0.5)


@pytest.mark.parametrize("name", ["session_status", "session_urls", "list_candidates"])
def test_an_unknown_session_is_said_to_be_unknown(
    call: Call, name: str, backend: EmbeddedBackend
) -> None:
    nobody = SessionHandle(session_id="nobody", backend_url=backend.url)
    with pytest.raises(SessionNotFound, match="nobody"):
        call(name, nobody)


def test_errors_do_not_name_the_key(call: Call, backend: EmbeddedBackend) -> None:
    nobody = SessionHandle(session_id="nobody", backend_url=backend.url)
    with pytest.raises(MiproError) as failure:
        call("session_status", nobody)
    shown = f"{failure.value!r} {failure.value} {vars(failure.value)}"
    assert backend.api_key.get_secret_value() not in shown
