"""What a call costs by the prices of the config."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import ConfigInvalid
from prefect_mipro.models.chat import Usage

USAGE = Usage(prompt_tokens=1_000_000, completion_tokens=500_000)
NANO = {"prompt_usd_per_million_tokens": 0.1, "completion_usd_per_million_tokens": 0.4}
LARGE = {"prompt_usd_per_million_tokens": 2.0, "completion_usd_per_million_tokens": 8.0}
NANO_USD, LARGE_USD = 0.3, 6.0


def config(**tables: Any) -> MiproConfig:
    return MiproConfig.parse({"prompt_learning": {"algorithm": "mipro", **tables}})


def cost(told: MiproConfig, model: str | None, asked_model: str | None = None) -> float | None:
    return told.call_cost_usd(model, USAGE, asked_model=asked_model)


def test_each_model_has_its_own_price() -> None:
    told = config(prices={"nano": NANO, "large": LARGE})
    assert cost(told, "nano") == pytest.approx(NANO_USD)
    assert cost(told, "large") == pytest.approx(LARGE_USD)


@pytest.mark.parametrize(
    "answered", ["gpt-4.1-nano-2025-04-14", "gpt-4.1-nano-20250414", "gpt-4.1-nano@20250414"]
)
def test_a_release_of_a_model_has_the_models_price(answered: str) -> None:
    told = config(prices={"gpt-4.1-nano": NANO, "gpt-4.1": LARGE})
    assert cost(told, answered) == pytest.approx(NANO_USD)


def test_a_release_may_have_a_price_of_its_own() -> None:
    told = config(prices={"gpt-4.1": LARGE, "gpt-4.1-2025-04-14": NANO})
    assert cost(told, "gpt-4.1-2025-04-14") == pytest.approx(NANO_USD)


def test_a_longer_name_is_another_model() -> None:
    assert cost(config(prices={"gpt-4.1": LARGE}), "gpt-4.1-nano") is None


def test_where_the_answer_names_no_priced_model_the_request_does() -> None:
    told = config(prices={"nano": NANO})
    assert cost(told, "/models/nano.gguf", "nano") == pytest.approx(NANO_USD)


def test_an_unknown_model_costs_nobody_knows_what() -> None:
    assert cost(config(prices={"nano": NANO}), "other") is None
    assert cost(config(), None) is None


def test_a_model_that_costs_nothing_is_known_to() -> None:
    free = {"prompt_usd_per_million_tokens": 0, "completion_usd_per_million_tokens": 0}
    assert cost(config(prices={"local": free}), "local") == 0.0


def test_the_policys_own_price_is_that_of_the_policy_model() -> None:
    told = config(policy={"model": "nano", **NANO})
    assert cost(told, None) == pytest.approx(NANO_USD)
    assert cost(told, "nano-2025-04-14") == pytest.approx(NANO_USD)
    assert cost(told, "nano:latest", "nano") == pytest.approx(NANO_USD)
    assert cost(told, "other") is None


def test_the_policys_own_price_is_every_models_where_it_names_none() -> None:
    assert cost(config(policy=NANO), "any") == pytest.approx(NANO_USD)


def test_the_table_goes_before_the_policys_own_price() -> None:
    told = config(policy={"model": "nano", **LARGE}, prices={"nano": NANO})
    assert cost(told, "nano") == pytest.approx(NANO_USD)


def test_the_proposer_model_is_looked_up_too() -> None:
    told = config(
        policy={"model": "nano"},
        prices={"nano": NANO, "large": LARGE},
        mipro={"proposer": {"model": "large"}},
    )
    spent = told.proposer_cost_usd(prompt_tokens=1_000_000, completion_tokens=500_000)
    assert spent == pytest.approx(LARGE_USD)


def test_a_proposer_that_is_the_policy_costs_the_same() -> None:
    told = config(policy={"model": "nano"}, prices={"nano": NANO})
    spent = told.proposer_cost_usd(prompt_tokens=1_000_000, completion_tokens=500_000)
    assert spent == pytest.approx(NANO_USD)


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ({"prompt_usd_per_million_tokens": 1}, "completion_usd_per_million_tokens is missing"),
        ({**NANO, "prompt_usd": 1}, "prices.nano.prompt_usd"),
        ({**NANO, "prompt_usd_per_million_tokens": -1}, "is -1"),
    ],
)
def test_a_price_that_cannot_be_is_refused(price: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        config(prices={"nano": price})


def test_names_of_models_are_no_unknown_keys() -> None:
    assert config(prices={"nano": NANO}).warnings == []


def test_an_override_may_set_a_price() -> None:
    told = MiproConfig.parse(
        {"prompt_learning": {"algorithm": "mipro"}}, {"prompt_learning.prices.nano": NANO}
    )
    assert cost(told, "nano") == pytest.approx(NANO_USD)
