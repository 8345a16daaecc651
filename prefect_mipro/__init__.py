"""The package's public names, each loaded on first use: importing this does not import Prefect."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from prefect_mipro.blocks import MiproCredentials as MiproCredentials
    from prefect_mipro.blocks import MiproSessionConfig as MiproSessionConfig
    from prefect_mipro.blocks import PromptChampion as PromptChampion
    from prefect_mipro.client.clients import AsyncClient as AsyncClient
    from prefect_mipro.client.clients import Client as Client
    from prefect_mipro.client.session import MiproOnlineSession as MiproOnlineSession
    from prefect_mipro.config import MiproConfig as MiproConfig
    from prefect_mipro.errors import HTTPError as HTTPError
    from prefect_mipro.errors import MiproError as MiproError
    from prefect_mipro.errors import SessionWarning as SessionWarning
    from prefect_mipro.flows import cancel_sessions as cancel_sessions
    from prefect_mipro.flows import optimize_prompt as optimize_prompt
    from prefect_mipro.flows import pause_sessions as pause_sessions
    from prefect_mipro.flows import promote_champion as promote_champion
    from prefect_mipro.flows import roll_back_champion as roll_back_champion
    from prefect_mipro.models.leases import Lease as Lease
    from prefect_mipro.models.leases import TraceRequest as TraceRequest
    from prefect_mipro.models.results import PolicyOptimizationResult as PolicyOptimizationResult
    from prefect_mipro.models.results import PromptLearningResult as PromptLearningResult
    from prefect_mipro.tasks import aopen_session as aopen_session
    from prefect_mipro.tasks import areport_rewards as areport_rewards
    from prefect_mipro.tasks import arollout_step as arollout_step
    from prefect_mipro.tasks import open_session as open_session
    from prefect_mipro.tasks import report_rewards as report_rewards
    from prefect_mipro.tasks import rollout_step as rollout_step

_HOMES = {
    "AsyncClient": "client.clients",
    "Client": "client.clients",
    "HTTPError": "errors",
    "Lease": "models.leases",
    "MiproConfig": "config",
    "MiproCredentials": "blocks",
    "MiproError": "errors",
    "MiproOnlineSession": "client.session",
    "MiproSessionConfig": "blocks",
    "PolicyOptimizationResult": "models.results",
    "PromptChampion": "blocks",
    "PromptLearningResult": "models.results",
    "SessionWarning": "errors",
    "TraceRequest": "models.leases",
    "aopen_session": "tasks",
    "areport_rewards": "tasks",
    "arollout_step": "tasks",
    "cancel_sessions": "flows",
    "open_session": "tasks",
    "optimize_prompt": "flows",
    "pause_sessions": "flows",
    "promote_champion": "flows",
    "report_rewards": "tasks",
    "roll_back_champion": "flows",
    "rollout_step": "tasks",
}

__all__ = ["__version__", *_HOMES]

# Hidden from type checkers: to them it would make every misspelt name an attribute.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Include names not loaded yet: `prefect block register -m` looks for blocks through dir()."""
    return sorted({*globals(), *__all__})
