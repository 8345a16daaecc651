"""Which upstream a provider's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_mipro.errors import ConfigInvalid, ModelMissing
from prefect_mipro.server.upstream.embedded import EmbeddedUpstream
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.registry import Upstreams

GROQ = OpenAIUpstream("http://groq.invalid/v1")
DEFAULT = OpenAIUpstream("http://default.invalid/v1")


def test_a_known_name_means_its_own_upstream() -> None:
    assert Upstreams({"groq": GROQ, "default": DEFAULT}).named("groq") is GROQ


def test_an_unknown_name_means_the_default_one() -> None:
    assert Upstreams({"groq": GROQ, "default": DEFAULT}).named("openai") is DEFAULT


@pytest.mark.parametrize("name", ["openai", "default"])
def test_without_a_default_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    upstreams = Upstreams({"groq": GROQ})
    with pytest.raises(ConfigInvalid, match=rf"'{name}' \(it has: embedded, groq\)") as error:
        upstreams.named(name)
    assert "--upstream-url" in str(error.value)


def test_the_embedded_model_is_missing_until_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    monkeypatch.setenv("MIPRO_MODEL_PATH", str(model))
    upstreams = Upstreams({"default": DEFAULT})
    for ask in (upstreams.check, upstreams.named):
        with pytest.raises(ModelMissing, match="MIPRO_MODEL_PATH"):
            ask("embedded")
    model.touch()
    upstreams.check("embedded")
    assert upstreams.named("embedded") is upstreams.named("embedded") is not DEFAULT


def test_a_configured_upstream_may_take_the_embedded_ones_name() -> None:
    assert Upstreams({"embedded": GROQ}).named("embedded") is GROQ


def test_a_program_that_calls_its_model_itself_needs_no_provider() -> None:
    upstreams = Upstreams({})
    upstreams.check("none")
    assert not upstreams.takes_caller_keys_only("none")
    with pytest.raises(ConfigInvalid, match="calls its model itself"):
        upstreams.named("none")


def test_each_provider_has_its_counts() -> None:
    upstreams = Upstreams({"groq": GROQ, "default": DEFAULT, "embedded": EmbeddedUpstream()})
    assert set(upstreams.counts()) == {"groq", "default", "embedded"}
    assert upstreams.counts()["groq"] is GROQ.counts
    assert upstreams.counts()["embedded"].in_flight == 0
