"""The loop users deploy."""

from __future__ import annotations

from prefect_mipro.flows.optimize import optimize_prompt

__all__ = ["optimize_prompt"]
