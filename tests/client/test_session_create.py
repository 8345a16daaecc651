"""MiproOnlineSession.create: what is sent, what is refused, whence address and key come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.errors import (
    ConfigInvalid,
    ConfigNotFound,
    InputInvalid,
    KeyMissing,
    SessionWarning,
)
from tests.client.backend import KEY, Backend
from tests.client.conftest import Call

CONFIG: dict[str, Any] = {"prompt_learning": {"algorithm": "mipro", "mipro": {"mode": "online"}}}
TOML = '[prompt_learning]\nalgorithm = "mipro"\n[prompt_learning.mipro]\nmode = "online"\n'


def created(call: Call, backend: Backend, **more: Any) -> MiproOnlineSession:
    options = {"backend_url": backend.url, "api_key": KEY, **more}
    session = call(MiproOnlineSession, "create", **options)
    assert isinstance(session, MiproOnlineSession)
    return session


@pytest.mark.parametrize("source", ["config", "config_body"])
def test_create_sends_a_dict_as_the_config_body(call: Call, backend: Backend, source: str) -> None:
    backend.answers({"session_id": "s"})
    created(
        call,
        backend,
        **{source: CONFIG},
        session_id="s",
        correlation_id="run-7",
        agent_id="a1",
        overrides={"prompt_learning.mipro.rollout.budget": 200},
        metadata={"team": "a"},
    )
    assert backend.asked == [("POST", "/api/v1/online/sessions")]
    assert backend.last.body == {
        "kind": "mipro_online",
        "technique": "discrete_optimization",
        "system": {"name": "s"},
        "session_id": "s",
        "correlation_id": "run-7",
        "agent_id": "a1",
        "config_body": CONFIG,
        "overrides": {"prompt_learning.mipro.rollout.budget": 200},
        "metadata": {"team": "a"},
    }


def test_create_reads_a_toml_file_here(call: Call, backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "mipro.toml"
    path.write_text(TOML)
    for source in ({"config": str(path)}, {"config": path}, {"config_path": path}):
        backend.answers({"session_id": "s"})
        created(call, backend, **source)
        assert backend.last.body["config_body"] == CONFIG
        assert "config_path" not in backend.last.body


def test_create_takes_toml_text(call: Call, backend: Backend) -> None:
    backend.answers({"session_id": "s"})
    created(call, backend, config=TOML)
    assert backend.last.body["config_body"] == CONFIG


def test_create_leaves_a_config_name_to_the_backend(call: Call, backend: Backend) -> None:
    backend.answers({"session_id": "s"})
    created(call, backend, config_name="nightly")
    assert backend.last.body["config_name"] == "nightly"
    assert "config_body" not in backend.last.body


def test_create_leaves_out_what_is_not_given(call: Call, backend: Backend) -> None:
    backend.answers({"session_id": "s"})
    created(call, backend, config=CONFIG, session_id="", correlation_id="", agent_id="")
    body = backend.last.body
    assert set(body) == {"kind", "technique", "system", "overrides", "metadata", "config_body"}
    assert (body["overrides"], body["metadata"]) == ({}, {})


def test_each_create_without_an_id_has_a_name_by_which_a_repeat_is_known(
    call: Call, backend: Backend
) -> None:
    backend.answers({"session_id": "s"}, {"session_id": "s"})
    created(call, backend, config=CONFIG)
    created(call, backend, config=CONFIG)
    names = [each.body["system"]["name"] for each in backend.received]
    assert names == [each.headers["idempotency-key"] for each in backend.received]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"config_name": "c", "config_body": CONFIG},
        {"config_name": "", "config_path": "x"},
        {"config": CONFIG, "config_name": "c"},
        {"config": CONFIG, "config_body": CONFIG},
    ],
)
def test_create_wants_exactly_one_config(
    call: Call, backend: Backend, sources: dict[str, Any]
) -> None:
    with pytest.raises(ConfigInvalid, match="Provide"):
        created(call, backend, **sources)
    assert backend.received == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": {}}, r"no \[prompt_learning\] section"),
        ({"config": "[prompt_learning\n"}, "not valid TOML"),
        ({"config": 5}, "type int"),
        ({"config": CONFIG, "overrides": {"prompt_learning.mipro.rollout.bugdet": 1}}, "budget"),
        ({"config": CONFIG, "overrides": {"prompt_learning.mipro.rollout.budget": 0}}, "budget"),
        ({"config_name": "c", "overrides": {"nothing.like": 1}}, "names no key"),
    ],
)
def test_an_unusable_config_is_refused_before_any_request(
    call: Call, backend: Backend, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigInvalid, match=words) as caught:
        created(call, backend, **options)
    assert isinstance(caught.value, ValueError)
    assert backend.received == []


@pytest.mark.parametrize("source", ["config", "config_path"])
def test_a_missing_file_is_a_file_not_found(
    call: Call, backend: Backend, tmp_path: Path, source: str
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        created(call, backend, **{source: tmp_path / "none.toml"})
    assert isinstance(caught.value, ConfigNotFound)
    assert backend.received == []


@pytest.mark.parametrize(
    "options",
    [
        {"session_id": "a/b"},
        {"metadata": {"when": object()}},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"backend_url": "localhost:8000"},
        {"api_key": "a\nb"},
    ],
)
def test_unusable_arguments_are_value_errors_before_any_request(
    call: Call, backend: Backend, options: dict[str, Any]
) -> None:
    with pytest.raises(InputInvalid) as caught:
        created(call, backend, config=CONFIG, **options)
    assert isinstance(caught.value, ValueError)
    assert backend.received == []


def test_create_fills_the_object(call: Call, backend: Backend) -> None:
    backend.answers(
        {
            "session_id": 7,
            "correlation_id": "theirs",
            "proxy_url": "http://h/p",
            "online_url": "http://h/o",
            "chat_completions_url": "http://h/c",
        }
    )
    session = created(call, backend, config=CONFIG, correlation_id="ours", timeout=5.0)
    assert session.session_id == "7"
    assert session.backend_url == backend.url
    assert session.api_key == KEY
    assert session.correlation_id == "theirs"
    assert session.proxy_url == "http://h/p"
    assert session.online_url == "http://h/o"
    assert session.chat_completions_url == "http://h/c"
    assert session.timeout == 5.0


def test_create_understands_an_older_backends_urls(call: Call, backend: Backend) -> None:
    backend.answers({"session_id": "s", "proxy_url": "http://h/p"})
    session = created(call, backend, config=CONFIG)
    assert session.online_url == "http://h/p"
    assert session.chat_completions_url == "http://h/p/chat/completions"


def test_create_may_be_answered_without_urls(call: Call, backend: Backend) -> None:
    backend.answers({"session_id": "s"})
    session = created(call, backend, config=CONFIG)
    assert (session.online_url, session.chat_completions_url) == (None, None)


@pytest.mark.parametrize(
    ("options", "correlation_id"),
    [
        ({"correlation_id": "c", "agent_id": "a"}, "c"),
        ({"agent_id": "a"}, "a"),
        ({}, None),
    ],
)
def test_the_correlation_id_falls_back_to_the_arguments(
    call: Call, backend: Backend, options: dict[str, str], correlation_id: str | None
) -> None:
    backend.answers({"session_id": "s"})
    session = created(call, backend, config=CONFIG, **options)
    assert session.correlation_id == correlation_id


@pytest.mark.parametrize("answer", [{}, {"session_id": ""}, {"session_id": None}])
def test_create_without_a_session_id_in_the_answer_is_an_error(
    call: Call, backend: Backend, answer: dict[str, Any]
) -> None:
    backend.answers(answer)
    with pytest.raises(ValueError, match="Missing session_id in response"):
        created(call, backend, config=CONFIG)
    assert len(backend.received) == 1


def test_address_and_key_come_from_the_environment_at_the_time_of_the_call(
    call: Call, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPRO_BACKEND_URL", f"{backend.url}/")
    monkeypatch.setenv("SYNTH_API_KEY", "key-of-the-environment")
    backend.answers({"session_id": "s"})
    session = call(MiproOnlineSession, "create", config=CONFIG)
    assert session.backend_url == backend.url
    assert session.api_key == "key-of-the-environment"
    assert backend.last.headers["authorization"] == "Bearer key-of-the-environment"


def test_a_backend_on_this_machine_is_used_without_a_key(call: Call, backend: Backend) -> None:
    backend.answers({"session_id": "s"})
    session = call(MiproOnlineSession, "create", backend_url=backend.url, config=CONFIG)
    assert session.api_key == ""
    assert "authorization" not in backend.last.headers


def test_a_backend_elsewhere_is_not_asked_without_a_key(call: Call) -> None:
    with pytest.raises(KeyMissing):
        call(MiproOnlineSession, "create", backend_url="https://mipro.example", config=CONFIG)
    with pytest.raises(KeyMissing):
        call(MiproOnlineSession("s", "https://mipro.example", ""), "status")


def test_the_identity_of_the_environment_is_sent_along(
    call: Call, backend: Backend, session: MiproOnlineSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_ORG_ID", "o1")
    call(session, "status")
    assert backend.last.headers["x-org-id"] == "o1"


def test_what_the_backend_warns_of_reaches_the_caller_and_the_log(
    call: Call, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    kept = "session s exists already and keeps its config; yours differs in prompt_learning.policy"
    backend.answers({"session_id": "s", "warnings": [kept, "the key x has no effect", 5]})
    with pytest.warns(SessionWarning) as caught:
        created(call, backend, config=CONFIG, session_id="s")
    texts = [str(each.message) for each in caught]
    assert texts == [f"session s: {kept}", "session s: the key x has no effect"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert kept in caplog.text


def test_a_warning_names_the_line_that_created_the_session(backend: Backend) -> None:
    backend.answers({"session_id": "s", "warnings": ["look here"]})
    with pytest.warns(SessionWarning, match="look here") as caught:
        MiproOnlineSession.create(backend_url=backend.url, api_key=KEY, config=CONFIG)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("warnings", [None, "none", {"a": 1}])
def test_a_backend_that_words_its_warnings_otherwise_is_no_trouble(
    call: Call, backend: Backend, warnings: object
) -> None:
    backend.answers({"session_id": "s", "warnings": warnings})
    created(call, backend, config=CONFIG)
