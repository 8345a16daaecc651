"""Which models and budgets a session may be created with."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import ConfigInvalid
from prefect_mipro.server.providers import CallerKey, Provider
from prefect_mipro.server.services.creation import admit_models, strange_providers
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.upstreams import upstreams_of
from tests.server.services.conftest import config_of

PRICE = {"prompt_usd_per_million_tokens": 1.0, "completion_usd_per_million_tokens": 2.0}


async def admit(config: dict[str, Any], **settings: Any) -> None:
    told = ServerSettings(upstream_url="http://model.invalid/v1", **settings)
    upstreams = upstreams_of(told)
    try:
        await admit_models(MiproConfig.parse(config), upstreams)
    finally:
        await upstreams.close()


async def refusal(config: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(ConfigInvalid) as error:
        await admit(config, **settings)
    return error.value.message


async def test_a_budget_of_money_without_a_price_is_refused_with_the_missing_key() -> None:
    message = await refusal(config_of(termination={"max_cost_usd": 1.0}))
    assert 'prompt_learning.prices."m"' in message


@pytest.mark.parametrize("where", ["policy", "prices"])
async def test_a_budget_of_money_with_a_price_is_kept(where: str) -> None:
    config = config_of(termination={"max_cost_usd": 1.0}, policy=PRICE if where == "policy" else {})
    config["prompt_learning"]["prices"] = {"m": PRICE} if where == "prices" else {}
    await admit(config)


async def test_a_url_of_a_host_that_is_not_allowed_is_refused_with_host_and_option() -> None:
    url = "https://models.example.com/v1"
    message = await refusal(config_of(policy={"inference_url": url}))
    assert message.startswith("prompt_learning.policy.inference_url leads to models.example.com")
    assert "--allowed-inference-hosts models.example.com" in message


async def test_the_proposers_url_is_checked_too() -> None:
    config = config_of(proposer={"inference_url": "http://127.0.0.1:1/v1"})
    assert (await refusal(config)).startswith("prompt_learning.mipro.proposer.inference_url")


async def test_a_url_of_a_provider_needs_no_permission() -> None:
    await admit(config_of(policy={"inference_url": "http://model.invalid/v1/chat/completions"}))


async def test_a_url_of_an_allowed_host_needs_no_provider() -> None:
    config = config_of(policy={"inference_url": "http://127.0.0.1:1/v1", "provider": "unknown"})
    await admit(config, allowed_inference_hosts="127.0.0.1")


async def test_a_proposer_without_a_key_is_refused_where_only_callers_keys_are_taken() -> None:
    own = {"own": Provider(base_url="http://own.invalid/v1", caller_key=CallerKey.REQUIRED)}
    config = config_of(policy={"provider": "own"})
    assert "'own' takes callers' own keys only" in await refusal(config, providers=own)
    await admit(config_of(policy={"provider": "own"}, proposer={"provider": "x"}), providers=own)
    silent = config_of(policy={"provider": "own"}, proposer={"mode": "demonstrations_only"})
    await admit(silent, providers=own)


@pytest.mark.parametrize(
    ("named", "upstream_url", "strange"),
    [
        ("groq", "http://model.invalid/v1", True),
        ("Groq", "https://api.groq.com/openai/v1", False),
        ("openai", "http://model.invalid/v1", False),
        ("default", "http://model.invalid/v1", False),
        ("own", "http://model.invalid/v1", False),
        ("none", "http://model.invalid/v1", False),
        ("embedded", "http://model.invalid/v1", False),
    ],
)
async def test_a_provider_that_the_default_stands_in_for_is_named(
    named: str, upstream_url: str, strange: bool
) -> None:
    own = {"own": Provider(base_url="http://own.invalid/v1")}
    upstreams = upstreams_of(ServerSettings(upstream_url=upstream_url, providers=own))
    config = MiproConfig.parse(config_of(policy={"provider": named}))
    proposer = MiproConfig.parse(config_of(proposer={"provider": named, "model": "m"}))
    try:
        found = strange_providers(config, upstreams), strange_providers(proposer, upstreams)
    finally:
        await upstreams.close()
    if not strange:
        assert found == ([], [])
        return
    (of_policy,), (of_proposer,) = found
    assert of_policy.startswith(f"prompt_learning.policy.provider is {named!r}, which is no")
    assert "(it has: default, own)" in of_policy
    assert of_proposer.startswith("prompt_learning.mipro.proposer.provider is")
