"""MiproOnlineSession as a class: its signatures, its errors, its copies and its connections."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import pickle
from typing import Any

import pytest

from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.errors import AnswerInvalid, HTTPError, MiproError, PaymentRequired
from tests.client.backend import KEY, Answer, Backend
from tests.client.conftest import Call
from tests.client.released_sdk import released

SESSION = "/api/v1/online/sessions/s"
CALLS = (
    "create",
    "get_online_url",
    "status",
    "pause",
    "resume",
    "cancel",
    "update_reward",
    "get_prompt_urls",
    "list_candidates",
    "get_candidate",
    "list_seed_evals",
)
OF_THE_CLASS = ("create", "get_online_url")


@pytest.mark.parametrize("name", ["", *CALLS, *(f"{name}_async" for name in CALLS)])
def test_arguments_and_defaults_are_those_of_the_documented_class(name: str) -> None:
    theirs = released("sdk.optimization.policy.mipro_online_session").MiproOnlineSession
    if name in ("pause_async", "resume_async", "cancel_async"):
        assert not hasattr(theirs, name)
        theirs_signature = inspect.signature(theirs.pause)
    else:
        theirs_signature = inspect.signature(getattr(theirs, name) if name else theirs)
    ours = getattr(MiproOnlineSession, name) if name else MiproOnlineSession

    def described(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
        return [(each.name, each.kind, each.default) for each in signature.parameters.values()]

    assert described(inspect.signature(ours)) == described(theirs_signature)


@pytest.mark.parametrize("name", CALLS)
def test_calls_carry_their_own_names_and_types(name: str) -> None:
    for full, waits in ((name, False), (f"{name}_async", True)):
        method = getattr(MiproOnlineSession, full)
        assert method.__name__ == full
        assert method.__doc__
        assert inspect.iscoroutinefunction(method) is waits
        assert "Steps" not in str(inspect.signature(method))


@pytest.mark.parametrize("name", CALLS)
async def test_a_blocking_call_in_an_event_loop_names_its_twin(
    session: MiproOnlineSession, backend: Backend, name: str
) -> None:
    owner = MiproOnlineSession if name in OF_THE_CLASS else session
    arguments = {"get_online_url": ["s"], "get_candidate": ["k"]}.get(name, [])
    options: dict[str, Any] = {"reward_info": {}} if name == "update_reward" else {}
    with pytest.raises(RuntimeError, match=f"await {name}_async"):
        getattr(owner, name)(*arguments, **options)
    assert backend.received == []


@pytest.mark.parametrize(
    "name", ["status", "pause", "get_prompt_urls", "list_candidates", "list_seed_evals"]
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"'])
def test_an_answer_that_is_no_object_is_a_value_error(
    call: Call, backend: Backend, session: MiproOnlineSession, name: str, body: bytes
) -> None:
    backend.answers(Answer(body))
    with pytest.raises(ValueError, match="object was due") as caught:
        call(session, name)
    assert isinstance(caught.value, AnswerInvalid)


def test_an_error_has_the_documented_fields(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    body = {"error": "SessionEnded", "message": "it is cancelled", "detail": {"state": "cancelled"}}
    backend.answers(Answer(body, status=409))
    with pytest.raises(HTTPError) as caught:
        call(session, "resume")
    assert caught.value.status == 409
    assert caught.value.url == f"{backend.url}{SESSION}"
    assert caught.value.message == "it is cancelled"
    assert caught.value.detail == body
    assert "SessionEnded" in caught.value.body_snippet


def test_payment_required_has_a_class_of_its_own(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    backend.answers(Answer({"detail": {"x402": {"challenge": "c"}}}, status=402))
    with pytest.raises(PaymentRequired) as caught:
        call(session, "status")
    assert caught.value.detail["detail"]["x402"] == {"challenge": "c"}


def test_the_key_is_in_no_error_and_no_log(
    call: Call, backend: Backend, session: MiproOnlineSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    backend.answers(Answer({"message": f"{KEY} is unknown"}, status=401))
    with pytest.raises(MiproError) as caught:
        call(session, "status")
    error = caught.value
    assert KEY not in f"{error} {error!r} {vars(error)} {caplog.text}"


def test_the_text_of_a_session_has_neither_key_nor_urls() -> None:
    session = MiproOnlineSession("s", "http://h", KEY, online_url="http://h/s.secret")
    assert "'s'" in repr(session)
    assert KEY not in repr(session)
    assert "secret" not in repr(session)


def test_a_pickle_leaves_the_key_behind_and_finds_the_one_of_its_new_place(
    call: Call, backend: Backend, session: MiproOnlineSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(session, "status")
    pickled = pickle.dumps(session)
    assert KEY.encode() not in pickled
    monkeypatch.setenv("MIPRO_API_KEY", "key-of-the-worker")
    copied = pickle.loads(pickled)
    call(copied, "status")
    assert (copied.session_id, copied.backend_url) == (session.session_id, session.backend_url)
    assert backend.last.headers["authorization"] == "Bearer key-of-the-worker"


def test_a_changed_setting_counts_from_the_next_call(
    call: Call, backend: Backend, session: MiproOnlineSession
) -> None:
    call(session, "status")
    session.api_key = "another-key"
    call(session, "status")
    assert backend.last.headers["authorization"] == "Bearer another-key"


def test_blocking_calls_share_a_connection_that_ends_with_the_session(backend: Backend) -> None:
    session = MiproOnlineSession("s", backend.url, KEY)
    for _ in range(3):
        session.status()
    assert len({each.port for each in backend.received}) == 1
    assert backend.closed.empty()
    del session
    gc.collect()
    assert backend.closed.get(timeout=10) == backend.last.port


def test_awaited_calls_share_a_connection_that_ends_with_the_loop(
    backend: Backend, recwarn: pytest.WarningsRecorder
) -> None:
    async def work() -> None:
        for _ in range(3):
            await MiproOnlineSession("s", backend.url, KEY).status_async()
        assert backend.closed.empty()

    for _ in range(2):
        asyncio.run(work())
        assert backend.closed.get(timeout=10) == backend.last.port
    gc.collect()
    assert len({each.port for each in backend.received}) == 2
    assert not [str(each.message) for each in recwarn if each.category is ResourceWarning]
