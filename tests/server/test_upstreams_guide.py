"""The examples of docs/upstreams.md are understood as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prefect_mipro.config import MiproConfig, parse_toml
from prefect_mipro.models.chat import Usage
from prefect_mipro.server.providers import Provider, ProviderTimeouts
from prefect_mipro.server.settings import ServerSettings

GUIDE = (Path(__file__).parents[2] / "docs" / "upstreams.md").read_text(encoding="utf-8")


def test_the_table_of_providers_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("GROQ_API_KEY", "sk-2")
    (table,) = re.findall(r"MIPRO_SERVER_PROVIDERS='(.*?)'", GUIDE, re.DOTALL)
    settings = ServerSettings(providers=json.loads(table))
    assert list(settings.providers) == ["openai", "groq"]


@pytest.mark.parametrize("name", [*Provider.model_fields, *ProviderTimeouts.model_fields])
def test_each_key_of_a_provider_is_explained(name: str) -> None:
    assert f"`{name}`" in GUIDE


def test_the_prices_are_prices() -> None:
    (prices,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    config = MiproConfig.parse(parse_toml(f'[prompt_learning]\nalgorithm = "mipro"\n{prices}'))
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000)
    assert config.call_cost_usd("gpt-4.1-nano-2025-04-14", usage) == pytest.approx(0.5)
    assert config.warnings == []


def test_the_options_are_options() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", GUIDE))
    known = {f"--{field.replace('_', '-')}" for field in ServerSettings.model_fields}
    assert named <= known
