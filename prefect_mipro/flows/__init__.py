"""Flows to deploy: optimize a prompt, promote or roll back a champion, clean up."""

from __future__ import annotations

from prefect_mipro.flows.approvals import Wait
from prefect_mipro.flows.cleanup import Idle, clean_up
from prefect_mipro.flows.lifecycle import cancel_sessions, pause_sessions
from prefect_mipro.flows.optimize import optimize_prompt
from prefect_mipro.flows.promotion import Policy, promote_champion, roll_back_champion
from prefect_mipro.flows.sessions import some_backend, some_session
from prefect_mipro.flows.temporary_server import temporary_server_settings

__all__ = [
    "Idle",
    "Policy",
    "Wait",
    "cancel_sessions",
    "clean_up",
    "optimize_prompt",
    "pause_sessions",
    "promote_champion",
    "roll_back_champion",
    "some_backend",
    "some_session",
    "temporary_server_settings",
]
