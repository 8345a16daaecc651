"""The session config as a whole: from TOML or dict, after overrides, checked."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import tomli
from pydantic import Field, ValidationError

from prefect_mipro.config import keys
from prefect_mipro.config.sections import (
    MiproSettings,
    ModelPrice,
    PolicySettings,
    Priced,
    PromptLearning,
    Section,
)
from prefect_mipro.errors import ConfigInvalid, ConfigNotFound
from prefect_mipro.models import foreign_patterns
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import InitialPrompt, Usage

# Long prompts have tens of kilobytes, and servers remember the configs of many sessions.
LARGEST_CONFIG_BYTES = 256 * 1024
_DATE = re.compile(r"[-@]20\d\d-?\d\d-?\d\d$")

# A proposer as small as the policy model writes instructions that are on average a little worse
# than the caller's own.
SMALL_PROPOSER_CAUTION = 0.02


class MiproConfig(Section):
    """A whole session config."""

    prompt_learning: PromptLearning
    warnings: list[str] = Field(default_factory=list, exclude=True)

    @property
    def policy(self) -> PolicySettings:
        """The policy model."""
        return self.prompt_learning.policy

    @property
    def mipro(self) -> MiproSettings:
        """The optimizer's settings."""
        return self.prompt_learning.mipro

    @property
    def caution(self) -> float:
        """How much worse a proposed lever is expected to be, in units of the scaled reward."""
        return SMALL_PROPOSER_CAUTION if self.proposer_is_policy else 0.0

    @property
    def proposer_is_policy(self) -> bool:
        """Whether the policy model writes the proposals itself."""
        proposer, policy = self.mipro.proposer, self.policy
        same_model = proposer.model in (None, policy.model)
        return same_model and self.proposer_endpoint == (policy.provider, policy.inference_url)

    @property
    def proposer_endpoint(self) -> tuple[str, str | None]:
        """The proposer model's provider, and the URL that takes its place, if one does."""
        proposer, policy = self.mipro.proposer, self.policy
        if proposer.provider or proposer.inference_url:
            return proposer.provider or policy.provider, proposer.inference_url
        return policy.provider, policy.inference_url

    @property
    def policy_is_priced(self) -> bool:
        """Whether the cost of the policy model's calls can be known."""
        return self.policy.priced or self._price_of(self.policy.model) is not None

    @property
    def has_prices(self) -> bool:
        """Whether the cost of any call can be known."""
        return self.policy.priced or bool(self.prompt_learning.prices)

    def call_cost_usd(
        self, model: str | None, usage: Usage, *, asked_model: str | None = None
    ) -> float | None:
        """What one call cost; `None` where no price is known for it.

        `model` is the one that the answer names, `asked_model` the one that the request named:
        servers often answer with a longer name. A price of either is used, that of `prices` first,
        then the policy's own, which is the price of every model where the policy names none.
        """
        names = [name for name in (model, asked_model) if name]
        price: Priced | None = next(filter(None, map(self._price_of, names)), None)
        if price is None and (
            not names
            or self.policy.model is None
            or self.policy.model in {*names, *map(_undated, names)}
        ):
            price = self._price_of(self.policy.model) or self.policy
        if price is None:
            return None
        return price.cost_usd(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
        )

    def proposer_cost_usd(self, *, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What the proposer model's tokens cost; `None` without a price."""
        proposer = self.mipro.proposer
        own: Priced | None = proposer if proposer.priced else self._price_of(proposer.model)
        prices = own or self._price_of(self.policy.model) or self.policy
        return prices.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def _price_of(self, model: str | None) -> ModelPrice | None:
        """The price in `prices` of that model, or of the same one without its date."""
        prices = self.prompt_learning.prices
        return prices.get(model or "") or prices.get(_undated(model or ""))

    @property
    def initial_prompt(self) -> InitialPrompt | None:
        """The caller's own prompt, if the config states it."""
        return self.prompt_learning.initial_prompt

    @classmethod
    def parse(cls, body: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Self:
        """Validate a config after its overrides. Raises ConfigInvalid.

        `warnings` names each key that is set and has no effect here, and what in a pattern may
        have been meant otherwise.
        """
        merged = override(body, overrides or {})
        require_size("the config", merged)
        if "prompt_learning" in merged and not isinstance(merged["prompt_learning"], Mapping):
            raise ConfigInvalid(
                f"prompt_learning is {_short(merged['prompt_learning'])}; it must be a table"
            )
        if "prompt_learning" not in merged:
            found = ", ".join(sorted(map(str, merged))) or "nothing"
            raise ConfigInvalid(
                f"the config has no [prompt_learning] section (it has: {found}); "
                'start it with [prompt_learning] and algorithm = "mipro"'
            )
        try:
            config = cls.model_validate({"prompt_learning": merged["prompt_learning"]})
        except ValidationError as error:
            raise ConfigInvalid(_sentences(error)) from None
        warnings = list(keys.warnings(merged))
        if prompt := config.initial_prompt:
            if faults := list(foreign_patterns.faults(prompt)):
                raise ConfigInvalid("; ".join(faults))
            warnings += foreign_patterns.doubtful(prompt)
        return config.model_copy(update={"warnings": warnings})


def parse_toml(text: str, *, source: str = "the config") -> JsonObject:
    """The table that a TOML text holds. Raises ConfigInvalid with the line."""
    size_bytes = len(text.encode(errors="surrogatepass"))
    if size_bytes > LARGEST_CONFIG_BYTES:
        raise _too_large(source, size_bytes)
    try:
        return tomli.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigInvalid(f"{source} is not valid TOML: {error}") from None


def read_toml(path: str | Path) -> JsonObject:
    """The table that a TOML file holds. Raises ConfigNotFound or ConfigInvalid."""
    path = Path(path)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > LARGEST_CONFIG_BYTES:
            raise _too_large(str(path), size_bytes)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigNotFound(
            f"cannot read the config file {path}: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    return parse_toml(text, source=str(path))


def override(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> JsonObject:
    """A copy of `body` with each dotted path of `overrides` set. Raises ConfigInvalid.

    A path must lead to a key that a config can have.
    """
    for name, table in (("the config", body), ("overrides", overrides)):
        if not isinstance(table, Mapping):
            raise ConfigInvalid(f"{name} is {_short(table)}; give a table (a dict)")
    try:
        merged, overrides = copy.deepcopy((dict(body), dict(overrides)))
    except RecursionError:
        raise ConfigInvalid("the config or an override is nested too deeply") from None
    for path, value in overrides.items():
        keys.check_path(path)
        *tables, key = path.split(".")
        table = merged
        for name in tables:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigInvalid(
                    f"override {path!r}: {name!r} is {type(inner).__name__} here, not a table"
                )
            table = inner
        table[key] = value
    return merged


def require_size(name: str, table: Mapping[str, Any]) -> None:
    """Raise ConfigInvalid if the table, written as JSON, has more than 256 KB."""
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":"), default=str)
    except (TypeError, ValueError, RecursionError):
        raise ConfigInvalid(f"{name} contains itself, or has keys that are no text") from None
    size_bytes = len(text.encode(errors="surrogatepass"))
    if size_bytes > LARGEST_CONFIG_BYTES:
        raise _too_large(name, size_bytes)


def _too_large(name: str, size_bytes: int) -> ConfigInvalid:
    return ConfigInvalid(
        f"{name} has {size_bytes:,} bytes, more than {LARGEST_CONFIG_BYTES:,} (256 KB); keep "
        "prompts and settings in it, and send data with the calls"
    )


def _undated(model: str) -> str:
    """The model's name without the date at its end: `-2025-04-14`, `-20250414`, `@20250414`."""
    return _DATE.sub("", model)


def _sentences(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        path = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "missing":
            parts.append(f"{path} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{path} is {_short(problem['input'])}: {message}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
