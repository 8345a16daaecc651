"""Opening a session: whatever names the config, and whichever prompt the session began with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import ConfigInvalid, ConfigNotFound, InputInvalid
from prefect_mipro.tasks import SessionHandle, open_session
from prefect_mipro.tasks.opening import session_plan
from tests.plugin.conftest import SYSTEM, config, new_id
from tests.plugin.twins import both, call

TOML = """
[prompt_learning]
algorithm = "mipro"
[prompt_learning.initial_prompt]
messages = [{ role = "user", pattern = "{request}" }]
[prompt_learning.policy]
model = "small"
"""


@pytest.fixture(params=["dict", "path", "text of a path", "block"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "session.toml"
    path.write_text(TOML)
    match request.param:
        case "dict":
            yield session_plan(path).config
        case "path":
            yield path
        case "text of a path":
            yield str(path)
        case "block":
            yield MiproSessionConfig(session_id="of-the-block", toml_text=TOML)


@both
def test_a_config_is_a_dict_a_path_or_a_block(
    twin: str, source: Any, backend: EmbeddedBackend
) -> None:
    session_id = new_id()
    session = call(f"{twin}open_session", source, session_id=session_id, backend_url=backend.url)
    assert (session.session_id, session.backend_url) == (session_id, backend.url)
    assert call("session_status", session).rollout_count == 0


def test_a_block_names_the_session_the_facts_and_the_credentials() -> None:
    credentials = MiproCredentials(backend_url="http://127.0.0.1:1")
    credentials._block_document_name = "mipro"
    block = MiproSessionConfig(
        session_id="bot",
        toml_text=TOML,
        metadata={"team": "support"},
        agent_id="answers",
        credentials=credentials,
    )
    plan = session_plan(block)
    assert (plan.session_id, plan.credentials, plan.agent_id) == ("bot", "mipro", "answers")
    assert plan.metadata == {"team": "support"}
    named = session_plan(block, session_id="other", credentials="theirs")
    assert (named.session_id, named.credentials) == ("other", "theirs")


def test_overrides_come_after_those_of_the_block() -> None:
    path = "prompt_learning.policy.temperature"
    block = MiproSessionConfig(session_id="bot", toml_text=TOML, overrides={path: 0.1})
    assert session_plan(block).settings.policy.temperature == 0.1
    assert session_plan(block, overrides={path: 0.7}).settings.policy.temperature == 0.7


@both
@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        (7, ConfigInvalid, "of type int; give the name of a saved MiproSessionConfig block"),
        ({}, ConfigInvalid, r"no \[prompt_learning\] section"),
        ("gone.toml", ConfigNotFound, "cannot read the config file gone.toml"),
    ],
)
def test_a_config_that_is_none_is_named(
    twin: str, source: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        call(f"{twin}open_session", source, backend_url="http://127.0.0.1:1")


def test_without_a_backend_the_ways_to_one_are_told() -> None:
    with pytest.raises(InputInvalid, match="no backend is named; give a credentials block or"):
        open_session(config())


@both
def test_a_handle_carries_the_prompt_that_the_session_began_with(
    twin: str, backend: EmbeddedBackend
) -> None:
    session_id = new_id()
    changed = config()
    changed["prompt_learning"]["initial_prompt"]["messages"][0]["pattern"] = "Do something else."
    sessions: list[SessionHandle] = [
        call(f"{twin}open_session", body, session_id=session_id, backend_url=backend.url)
        for body in (config(), changed)
    ]
    for session in sessions:
        assert session.prompt is not None
        assert [message.pattern for message in session.prompt.ordered] == [SYSTEM, "{request}"]


def test_a_session_without_a_prompt_has_none_in_its_handle(backend: EmbeddedBackend) -> None:
    body = config()
    del body["prompt_learning"]["initial_prompt"]
    assert open_session(body, session_id=new_id(), backend_url=backend.url).prompt is None
