"""The session config, from TOML or dict. Every message names the key and the way out."""

from __future__ import annotations

from prefect_mipro.config.sections import (
    DemonstrationSettings,
    Exploration,
    FromTraffic,
    MiproSettings,
    MissingRewardSettings,
    ModelPrice,
    PolicySettings,
    PromotionSettings,
    PromptLearning,
    ProposalTrigger,
    ProposerMode,
    ProposerSettings,
    SelectionSettings,
    Strategy,
    TerminationSettings,
    TraceContent,
)
from prefect_mipro.config.session import (
    MiproConfig,
    override,
    parse_toml,
    read_toml,
    require_size,
)

__all__ = [
    "DemonstrationSettings",
    "Exploration",
    "FromTraffic",
    "MiproConfig",
    "MiproSettings",
    "MissingRewardSettings",
    "ModelPrice",
    "PolicySettings",
    "PromotionSettings",
    "PromptLearning",
    "ProposalTrigger",
    "ProposerMode",
    "ProposerSettings",
    "SelectionSettings",
    "Strategy",
    "TerminationSettings",
    "TraceContent",
    "override",
    "parse_toml",
    "read_toml",
    "require_size",
]
