"""The tables of a session config: every setting with its default and its bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prefect_mipro.models.chat import InitialPrompt

MOST_SEEDS = 100_000


class ProposerMode(StrEnum):
    """Which levers the proposer may write new versions of."""

    INSTRUCTION_ONLY = "instruction_only"
    DEMONSTRATIONS_ONLY = "demonstrations_only"
    ALL_LEVERS = "all_levers"


class FromTraffic(StrEnum):
    """Which recorded calls may be shown to other users, word by word, in a prompt.

    `expected_only` takes those whose reward was marked as `shareable`. `reviewed` takes all, and a
    set with unmarked texts waits until a person approves it. `allowed` takes all, without review.
    """

    EXPECTED_ONLY = "expected_only"
    REVIEWED = "reviewed"
    ALLOWED = "allowed"


class ProposalTrigger(StrEnum):
    """When proposals are made: after rewards while serving, or never."""

    INLINE = "inline"
    OFF = "off"


class Strategy(StrEnum):
    """How a candidate is chosen for a rollout."""

    MIPRO = "mipro"
    UNIFORM = "uniform"
    FIXED = "fixed"


class Exploration(StrEnum):
    """How much of the traffic goes to prompts that may or may not be better."""

    CAREFUL = "careful"
    BALANCED = "balanced"
    BOLD = "bold"


class TraceContent(StrEnum):
    """What is kept of the texts of calls and rewards: all, or nothing."""

    FULL = "full"
    OFF = "off"


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


class Priced(Section):
    """What a model's tokens cost; of two prices, one that is not told counts as nothing."""

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


class ModelPrice(Priced):
    """One entry of `prices`: both prices of a model."""

    model_config = ConfigDict(extra="forbid")

    prompt_usd_per_million_tokens: float = Field(ge=0.0)
    completion_usd_per_million_tokens: float = Field(ge=0.0)


class PolicySettings(Priced):
    """The policy model: it answers the user's program. A caller's own values go first.

    `inference_url` takes the place of the provider, where the backend allows its host.
    """

    model: str | None = None
    provider: str = "default"
    inference_url: str | None = None
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    max_completion_tokens: int | None = Field(default=None, gt=0)


class ProposerSettings(Priced):
    """The proposer model: it writes new instructions. Unset, it is the policy model.

    Its tokens cost what the policy's cost, unless it has prices of its own.
    """

    mode: ProposerMode = ProposerMode.ALL_LEVERS
    model: str | None = None
    provider: str | None = None
    inference_url: str | None = None
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, gt=0)
    generate_at_iterations: list[int] | None = None
    instructions_per_batch: int = Field(default=2, ge=0)


class DemonstrationSettings(Section):
    """How demonstration sets are made from rewarded traces and expected answers.

    A set has one of `sizes` demonstrations, each at most `max_characters` long and all together
    at most `max_set_characters`. `from_traffic` says whose texts may be in it.
    """

    from_traffic: FromTraffic = FromTraffic.EXPECTED_ONLY
    max_sets: int = Field(default=6, ge=0)
    sets_per_batch: int = Field(default=2, ge=0)
    sizes: list[Annotated[int, Field(gt=0)]] = Field(default=[4, 8, 16], min_length=1)
    max_characters: int = Field(default=2_000, gt=0)
    max_set_characters: int = Field(default=12_000, gt=0)


class SelectionSettings(Section):
    """How candidates are chosen for rollouts.

    `exploration` is how much of the traffic goes to candidates that may or may not be better
    (`optimizer.strategies`), and at most `explore_share` of it leaves the champion before one looks
    better. `candidate_id` is the candidate that the strategy `fixed` serves.
    """

    strategy: Strategy = Strategy.MIPRO
    exploration: Exploration = Exploration.BALANCED
    explore_share: float = Field(default=1.0, ge=0.0, le=1.0)
    candidate_id: str | None = None


class PromotionSettings(Section):
    """What evidence a duel needs, and when it is given up.

    A challenger must be better by more than `min_lift`, in units of the scaled reward.
    """

    enabled: bool = True
    alpha: float = Field(default=0.05, gt=0.0, lt=1.0)
    min_rewards: int = Field(default=60, ge=1)
    min_lift: float = Field(default=0.0, ge=0.0, lt=1.0)
    traffic_share: float = Field(default=0.75, gt=0.0, le=1.0)
    max_rollouts: int = Field(default=1_000, ge=1)


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
    """The table `[prompt_learning.mipro]`.

    With `fallback_to_champion` a call that the model refuses because of a candidate's prompt is
    made once more with the champion's, and the rollout is the champion's then.
    """

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
    trace_content: TraceContent = TraceContent.FULL
    fallback_to_champion: bool = True

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
    prices: dict[str, ModelPrice] = Field(default_factory=dict)
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
