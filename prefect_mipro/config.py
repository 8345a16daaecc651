"""The session config, from TOML or dict. Every message names the key and the way out."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from prefect_mipro.errors import ConfigInvalid, ConfigNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import InitialPrompt

LARGEST_CONFIG_BYTES = 1_000_000
MOST_SEEDS = 100_000

# A proposer as small as the policy model writes instructions that are on average a little worse
# than the caller's own.
SMALL_PROPOSER_CAUTION = 0.02


class ProposerMode(StrEnum):
    """Which levers the proposer may write new versions of."""

    INSTRUCTION_ONLY = "instruction_only"
    DEMONSTRATIONS_ONLY = "demonstrations_only"
    ALL_LEVERS = "all_levers"


class ProposalTrigger(StrEnum):
    """When proposals are made: after rewards while serving, or never."""

    INLINE = "inline"
    OFF = "off"


class Strategy(StrEnum):
    """How a candidate is chosen for a rollout."""

    MIPRO = "mipro"
    MIPRO_TPE = "mipro_tpe"
    THOMPSON = "thompson"
    UNIFORM = "uniform"
    FIXED = "fixed"


def _seed_list(value: Any) -> Any:
    """`{start, end, step}`, the older way to write a list of seeds, becomes the list."""
    if not (isinstance(value, Mapping) and {"start", "end"} <= set(value)):
        return value
    start, end, step = value["start"], value["end"], value.get("step", 1)
    if not all(isinstance(bound, int) for bound in (start, end, step)) or step == 0:
        raise ValueError("start, end and step must be integers, and step not 0")
    if abs(end - start) > MOST_SEEDS * abs(step):
        raise ValueError(f"that is more than {MOST_SEEDS} seeds")
    return list(range(start, end, step))


Seeds = Annotated[list[int], Field(max_length=MOST_SEEDS), BeforeValidator(_seed_list)]


class Section(BaseModel):
    """A table of the config. Unknown keys are kept out, and named in a warning."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )


class PolicySettings(Section):
    """The policy model: it answers the user's program. A caller's own values go first."""

    model: str | None = None
    provider: str = "default"
    inference_url: str | None = None
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    prompt_usd_per_million_tokens: float | None = Field(default=None, ge=0.0)
    completion_usd_per_million_tokens: float | None = Field(default=None, ge=0.0)

    @property
    def priced(self) -> bool:
        """Whether any price is told."""
        return (self.prompt_usd_per_million_tokens, self.completion_usd_per_million_tokens) != (
            None,
            None,
        )

    def cost_usd(self, *, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What so many tokens cost; `None` without a price."""
        if not self.priced:
            return None
        spent = prompt_tokens * (self.prompt_usd_per_million_tokens or 0.0)
        spent += completion_tokens * (self.completion_usd_per_million_tokens or 0.0)
        return spent / 1e6


class ProposerSettings(Section):
    """The proposer model: it writes new instructions. Unset, it is the policy model.

    Its tokens cost what the policy's cost, unless it has prices of its own.
    """

    mode: ProposerMode = ProposerMode.ALL_LEVERS
    model: str | None = None
    provider: str | None = None
    inference_url: str | None = None
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, gt=0)
    prompt_usd_per_million_tokens: float | None = Field(default=None, ge=0.0)
    completion_usd_per_million_tokens: float | None = Field(default=None, ge=0.0)
    generate_at_iterations: list[int] | None = None
    instructions_per_batch: int = Field(default=2, ge=0)


class DemonstrationSettings(Section):
    """How demonstration sets are made from rewarded traces and expected answers.

    A set has one of `sizes` demonstrations, each at most `max_characters` long and all together
    at most `max_set_characters`.
    """

    max_sets: int = Field(default=6, ge=0)
    sets_per_batch: int = Field(default=2, ge=0)
    sizes: list[Annotated[int, Field(gt=0)]] = Field(default=[4, 8, 16], min_length=1)
    max_characters: int = Field(default=2_000, gt=0)
    max_set_characters: int = Field(default=12_000, gt=0)


class SelectionSettings(Section):
    """Cold top-two Thompson sampling on the additive model, and its rivals.

    `temperature` scales the posterior's standard deviation when drawing, `leader_share` is the
    top-two parameter beta, `uniform_share` is spread evenly against lock-in, and at most
    `explore_share` of the traffic leaves the champion before a candidate looks better. A proposed
    lever with fewer than `new_lever_rewards` rewards gets at most `new_lever_share`. `caution` is
    how much worse a proposed lever is expected to be than the caller's own, in units of the scaled
    reward; unset, it is 0.02 where the policy model writes the proposals, else 0.
    """

    strategy: Strategy = Strategy.MIPRO
    temperature: float = Field(default=0.5, gt=0.0)
    leader_share: float = Field(default=0.8, ge=0.0, le=1.0)
    uniform_share: float = Field(default=0.02, ge=0.0, le=1.0)
    explore_share: float = Field(default=1.0, ge=0.0, le=1.0)
    new_lever_share: float = Field(default=0.25, gt=0.0, le=1.0)
    new_lever_rewards: int = Field(default=5, ge=0)
    caution: float | None = Field(default=None, ge=0.0, le=1.0)
    candidate_id: str | None = None


class PromotionSettings(Section):
    """When a duel starts, what evidence it needs, and when it is given up.

    A challenger must be better by more than `min_lift`, in units of the scaled reward.
    """

    enabled: bool = True
    alpha: float = Field(default=0.05, gt=0.0, lt=1.0)
    trigger_probability: float = Field(default=0.9, gt=0.5, lt=1.0)
    min_rewards: int = Field(default=60, ge=1)
    min_lift: float = Field(default=0.0, ge=0.0, lt=1.0)
    traffic_share: float = Field(default=0.5, gt=0.0, le=1.0)
    max_rollouts: int = Field(default=1_000, ge=1)
    cool_down_rollouts: int = Field(default=60, ge=0)


class MissingRewardSettings(Section):
    """When a reward counts as missing, and as what.

    A rollout is given up once `after_rewards` rollouts that began later have their rewards, or
    after `after_seconds`. It is left out then, or counts as the score `impute`.
    """

    after_rewards: int = Field(default=200, ge=1)
    after_seconds: float = Field(default=172_800.0, gt=0.0)
    impute: float | None = None


class RolloutSettings(Section):
    """The budget of rollouts after which the session ends."""

    budget: int | None = Field(default=None, gt=0)


class TerminationSettings(Section):
    """What ends the session. The champion is served from then on.

    Budgets: rollouts, seconds, tokens and US dollars, the proposer's included. Evidence: so many
    promotions. Plateau: so many rollouts since the last promotion. Exploration: what knowing every
    candidate's mean reward could still add, in units of the scaled reward.
    """

    max_rollouts: int | None = Field(default=None, gt=0)
    max_seconds: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    max_cost_usd: float | None = Field(default=None, gt=0)
    max_promotions: int | None = Field(default=None, gt=0)
    max_trials_without_improvement: int | None = Field(default=None, gt=0)
    min_exploration_value: float | None = Field(default=None, gt=0.0, lt=1.0)


class MiproSettings(Section):
    """The table `[prompt_learning.mipro]`."""

    mode: Literal["online"] = "online"
    system_id: str | None = None
    system_name: str | None = None
    seed: int = 0
    reward_range: tuple[float, float] = (0.0, 1.0)
    bootstrap_train_seeds: Seeds = Field(default_factory=list)
    online_pool: Seeds = Field(
        default_factory=list,
        validation_alias=AliasChoices("online_pool", "online_train_seeds"),
    )
    val_seeds: Seeds = Field(default_factory=list)
    reference_pool: Seeds = Field(default_factory=list)
    test_pool: Seeds = Field(default_factory=list)
    few_shot_score_threshold: float = Field(default=0.8, ge=0.0, le=1.0)
    online_proposer_mode: ProposalTrigger = ProposalTrigger.INLINE
    online_proposer_min_rollouts: int = Field(default=20, ge=0)
    online_proposer_min_rewards: int = Field(default=20, ge=1)
    online_proposer_min_seconds: float = Field(default=0.0, ge=0.0)
    online_proposer_max_candidates: int = Field(default=50, ge=1)
    online_rollouts_per_candidate: int = Field(
        default=1,
        ge=1,
        validation_alias=AliasChoices(
            "online_rollouts_per_candidate",
            "rollouts_per_candidate",
            "candidate_rollouts",
        ),
    )
    max_instruction_slots: int = Field(default=6, ge=1)
    rollout: RolloutSettings = RolloutSettings()
    proposer: ProposerSettings = ProposerSettings()
    demonstrations: DemonstrationSettings = DemonstrationSettings()
    selection: SelectionSettings = SelectionSettings()
    promotion: PromotionSettings = PromotionSettings()
    missing_rewards: MissingRewardSettings = MissingRewardSettings()

    @model_validator(mode="after")
    def _range_has_width(self) -> Self:
        low, high = self.reward_range
        if not (low < high and math.isfinite(high - low)):
            raise ValueError(
                f"reward_range is [{low}, {high}]; give two finite numbers, the smaller one first"
            )
        imputed = self.missing_rewards.impute
        if imputed is not None and not low <= imputed <= high:
            raise ValueError(
                f"missing_rewards.impute is {imputed}, outside of reward_range [{low}, {high}]"
            )
        return self

    def scaled(self, score: float) -> float:
        """A score of `reward_range` as a reward in [0, 1]."""
        low, high = self.reward_range
        return (score - low) / (high - low)

    @property
    def imputed_reward(self) -> float | None:
        """The scaled reward that stands in for a missing one, if any does."""
        imputed = self.missing_rewards.impute
        return None if imputed is None else self.scaled(imputed)

    def split_of(self, example_id: str | None) -> str | None:
        """`train`, `validation`, `held_out` or `None` for an example named by its seed."""
        try:
            seed = int(example_id or "")
        except ValueError:
            return None
        if seed in self.test_pool:
            return "held_out"
        if seed in self.val_seeds:
            return "validation"
        if seed in self.online_pool or seed in self.bootstrap_train_seeds:
            return "train"
        return None


class PromptLearning(Section):
    """The table `[prompt_learning]`."""

    algorithm: Literal["mipro"] = Field(
        validation_alias=AliasChoices("algorithm", "algorithm_name")
    )
    initial_prompt: InitialPrompt | None = None
    policy: PolicySettings = PolicySettings()
    mipro: MiproSettings = MiproSettings()
    termination_config: TerminationSettings = TerminationSettings()
    task_app_id: str | None = None
    task_app_url: str | None = None
    container_id: str | None = None
    container_url: str | None = None
    bootstrap_train_seeds: Seeds = Field(default_factory=list)
    online_pool: Seeds = Field(default_factory=list)
    reference_pool: Seeds = Field(default_factory=list)
    test_pool: Seeds = Field(default_factory=list)

    @model_validator(mode="after")
    def _pools_belong_to_mipro(self) -> Self:
        """Pools may stand here or under `mipro`; the inner table goes first."""
        outer = {
            name: getattr(self, name)
            for name in (
                "bootstrap_train_seeds",
                "online_pool",
                "reference_pool",
                "test_pool",
            )
            if not getattr(self.mipro, name)
        }
        object.__setattr__(self, "mipro", self.mipro.model_copy(update=outer))
        return self


# Words of the hosted service that this backend reads past; a warning names each that is set.
INERT: Mapping[str, frozenset[str]] = {
    "prompt_learning": frozenset(
        "task_app_api_key env_name env_config proxy_models ontology verifier results_folder".split()
    ),
    "prompt_learning.policy": frozenset({"inference_mode", "policy_name", "config"}),
    "prompt_learning.termination_config": frozenset(
        "max_trials max_category_costs_usd pessimism_enabled".split()
    ),
    "prompt_learning.mipro": frozenset(
        "online_recent_event_window online_recent_rollout_window online_event_shard_size "
        "online_rollout_shard_size online_snapshot_max_events online_snapshot_max_seconds "
        "transform_slots proxy_models ontology tpe spec_path spec_max_tokens "
        "spec_include_examples spec_priority_threshold metaprompt text_dreamer adaptive_pool "
        "verifier num_iterations num_evaluations_per_iteration batch_size max_concurrent env_name "
        "env_config min_bootstrap_demos max_wall_clock_seconds max_token_limit max_spend_usd "
        "token_counting_model enforce_token_limit demo grounding meta_update meta meta_model "
        "meta_model_provider modules seeds policy_config results_file proposer_effort "
        "proposer_output_tokens".split()
    ),
}


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
        told = self.mipro.selection.caution
        if told is not None:
            return told
        return SMALL_PROPOSER_CAUTION if self.proposer_is_policy else 0.0

    @property
    def proposer_is_policy(self) -> bool:
        """Whether the policy model writes the proposals itself."""
        proposer, policy = self.mipro.proposer, self.policy
        same_model = proposer.model in (None, policy.model)
        return same_model and proposer.provider in (None, policy.provider)

    def proposer_cost_usd(self, *, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What the proposer model's tokens cost; `None` without a price."""
        priced = PolicySettings(
            prompt_usd_per_million_tokens=self.mipro.proposer.prompt_usd_per_million_tokens,
            completion_usd_per_million_tokens=self.mipro.proposer.completion_usd_per_million_tokens,
        )
        prices = priced if priced.priced else self.policy
        return prices.cost_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    @property
    def initial_prompt(self) -> InitialPrompt | None:
        """The caller's own prompt, if the config states it."""
        return self.prompt_learning.initial_prompt

    @classmethod
    def parse(cls, body: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Self:
        """Validate a config after its overrides. Raises ConfigInvalid.

        `warnings` names each key that is set and has no effect here.
        """
        merged = override(body, overrides or {})
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
        warnings = [*_warnings(merged), *_unpriced(config)]
        return config.model_copy(update={"warnings": warnings})


def parse_toml(text: str, *, source: str = "the config") -> JsonObject:
    """The table that a TOML text holds. Raises ConfigInvalid with the line."""
    try:
        return tomli.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigInvalid(f"{source} is not valid TOML: {error}") from None


def read_toml(path: str | Path) -> JsonObject:
    """The table that a TOML file holds. Raises ConfigNotFound or ConfigInvalid."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise ConfigInvalid(f"{path} is larger than {LARGEST_CONFIG_BYTES} bytes")
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
        _check_path(path)
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


def _check_path(path: object) -> None:
    if not isinstance(path, str):
        raise ConfigInvalid(f"override {path!r} is no path; give text with dots between the keys")
    known = set(_known_paths())
    free = "prompt_learning.initial_prompt.wildcards."
    inert_tables = tuple(f"{table}.{key}." for table, keys in INERT.items() for key in keys)
    if path in known or path.startswith((free, *inert_tables)):
        return
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        f"prompt_learning.mipro.{path}", known, n=1, cutoff=0.5
    )
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigInvalid(f"override {path!r} names no key of a config{hint}")


def _known_paths() -> Iterator[str]:
    yield from _section_paths(MiproConfig, "")
    for table, keys in INERT.items():
        yield from (f"{table}.{key}" for key in keys)


def _section_paths(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, inner in _fields(section).items():
        yield f"{prefix}{name}"
        if inner:
            yield from _section_paths(inner, f"{prefix}{name}.")


def _fields(section: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Every name a key of the section may have, with the section below it, if it is a table."""
    fields: dict[str, type[BaseModel] | None] = {}
    for name, field in section.model_fields.items():
        if field.exclude:
            continue
        types = (field.annotation, *get_args(field.annotation))
        inner = next((t for t in types if isinstance(t, type) and issubclass(t, BaseModel)), None)
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [name]
        fields.update({str(choice): inner for choice in names})
    return fields


def _warnings(merged: Mapping[str, Any]) -> Iterator[str]:
    for key in merged:
        if key != "prompt_learning":
            yield f"{key} is not part of a session config and has no effect"
    yield from _section_warnings(PromptLearning, merged["prompt_learning"], "prompt_learning")


def _unpriced(config: MiproConfig) -> Iterator[str]:
    if config.prompt_learning.termination_config.max_cost_usd and not config.policy.priced:
        yield (
            "prompt_learning.termination_config.max_cost_usd has no effect without a price; set "
            "prompt_learning.policy.prompt_usd_per_million_tokens and "
            "completion_usd_per_million_tokens"
        )


def _section_warnings(
    section: type[BaseModel], table: Mapping[str, Any], path: str
) -> Iterator[str]:
    fields = _fields(section)
    inert = INERT.get(path, frozenset())
    for key, value in table.items():
        if key in inert:
            yield f"{path}.{key} has no effect on this backend"
        elif key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{path}.{key} is not known and has no effect{hint}"
        elif (inner := fields[key]) and isinstance(value, Mapping):
            yield from _section_warnings(inner, value, f"{path}.{key}")


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
