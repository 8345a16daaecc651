"""Blocks: what they accept, what they refuse, and what they never show."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig, PromptChampion
from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.errors import ConfigInvalid, ConfigNotFound

KEY = "key-that-nobody-may-see"
TOML = '[prompt_learning]\nalgorithm = "mipro"\n[prompt_learning.policy]\nmodel = "small"\n'
BODY = {"prompt_learning": {"algorithm": "mipro", "policy": {"model": "small"}}}


def credentials() -> MiproCredentials:
    return MiproCredentials(backend_url="http://127.0.0.1:8000/api/v1", api_key=SecretStr(KEY))


def test_credentials_make_a_client_of_the_backend() -> None:
    with credentials().get_client() as client:
        assert isinstance(client, Client)
        assert client.backend_url == "http://127.0.0.1:8000"


async def test_credentials_make_an_async_client_of_the_backend() -> None:
    async with credentials().get_async_client() as client:
        assert isinstance(client, AsyncClient)
        assert client.backend_url == "http://127.0.0.1:8000"


def test_credentials_work_without_a_key() -> None:
    with MiproCredentials(backend_url="http://127.0.0.1:8000").get_client() as client:
        assert client.backend_url == "http://127.0.0.1:8000"


def test_each_call_makes_a_new_client_so_that_the_block_can_travel() -> None:
    block = credentials()
    with block.get_client() as one, block.get_client() as other:
        assert one is not other
        copy = pickle.loads(pickle.dumps(block))
    assert copy.api_key.get_secret_value() == KEY


def test_the_key_is_not_shown() -> None:
    block = credentials()
    assert KEY not in f"{block!r} {block} {block.model_dump_json()}"


@pytest.mark.parametrize("block", [MiproCredentials, MiproSessionConfig, PromptChampion])
def test_a_deployment_can_tell_the_block_from_its_reference(block: type[MiproCredentials]) -> None:
    # With no required field, a reference would match both forms of the API's schema.
    assert any(field.is_required() for field in block.model_fields.values())


@pytest.mark.parametrize("source", [{"toml_text": TOML}, {"config": BODY}], ids=["text", "object"])
def test_every_source_gives_the_same_config(source: dict[str, Any]) -> None:
    assert MiproSessionConfig(session_id="bot", **source).config_body() == BODY


def test_the_config_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "session.toml"
    path.write_text(TOML, encoding="utf-8")
    assert MiproSessionConfig(session_id="bot", toml_path=path).config_body() == BODY


def test_overrides_replace_values_of_the_config() -> None:
    block = MiproSessionConfig(
        session_id="bot", config=BODY, overrides={"prompt_learning.policy.model": "large"}
    )
    assert block.config_body()["prompt_learning"]["policy"]["model"] == "large"


def test_a_bad_override_is_refused_with_a_hint() -> None:
    block = MiproSessionConfig(
        session_id="bot", config=BODY, overrides={"prompt_learning.policy.modell": "large"}
    )
    with pytest.raises(ConfigInvalid, match=r"did you mean 'prompt_learning\.policy\.model'"):
        block.config_body()


def test_a_config_without_its_section_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"no \[prompt_learning\] section"):
        MiproSessionConfig(session_id="bot", config={"algorithm": "mipro"}).config_body()


def test_broken_toml_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigInvalid, match=r"toml_text is not valid TOML: .*line 2"):
        MiproSessionConfig(
            session_id="bot", toml_text="[prompt_learning]\nalgorithm = mipro\n"
        ).config_body()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigNotFound, match=r"absent\.toml"):
        MiproSessionConfig(session_id="bot", toml_path=tmp_path / "absent.toml").config_body()


@pytest.mark.parametrize(
    ("sources", "said"),
    [({}, "none of them"), ({"toml_text": TOML, "config": BODY}, "given: toml_text, config")],
)
def test_exactly_one_source_must_be_given(sources: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MiproSessionConfig(session_id="bot", **sources)


def test_a_session_id_that_no_url_can_carry_is_refused() -> None:
    with pytest.raises(ValidationError, match="session_id"):
        MiproSessionConfig(session_id="support bot?", config=BODY)


def test_nested_credentials_hide_their_key() -> None:
    block = MiproSessionConfig(session_id="bot", config=BODY, credentials=credentials())
    assert KEY not in f"{block!r} {block.model_dump_json()}"
