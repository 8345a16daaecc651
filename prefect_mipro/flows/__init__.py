"""The loop users deploy."""

from __future__ import annotations

from prefect_mipro.flows.backend import some_backend
from prefect_mipro.flows.optimize import optimize_prompt
from prefect_mipro.flows.temporary_server import temporary_server_settings

__all__ = ["optimize_prompt", "some_backend", "temporary_server_settings"]
