"""What a flow's log warns of: configs that are not taken over, rewards that do not count."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.tasks import LiveRollout, RolloutJob, SessionHandle
from tests.plugin.conftest import config, new_id
from tests.plugin.run_log import logged
from tests.plugin.twins import both, call

ROW = {"id": "7", "request": "play jazz #music"}


def ask(rollout: LiveRollout, row: dict[str, Any]) -> str:
    return rollout.ask(row)


@both
@pytest.mark.parametrize("name", ["create_session", "open_session"])
def test_a_session_that_keeps_its_config_says_so(
    name: str, twin: str, backend: EmbeddedBackend
) -> None:
    session_id = new_id()
    told = {"session_id": session_id, "backend_url": backend.url}
    with logged() as warnings:
        call(f"{twin}{name}", config(seed=1), **told)
        call(f"{twin}{name}", config(seed=1), **told)
        assert warnings == []
        call(f"{twin}{name}", config(seed=2, online_pol=[1]), **told)
    (warning,) = warnings
    assert f"session {session_id} exists already and keeps its config" in warning
    assert "prompt_learning.mipro.seed" in warning


@both
def test_keys_without_effect_are_named(twin: str, backend: EmbeddedBackend) -> None:
    with logged() as warnings:
        call(f"{twin}create_session", config(online_pol=[1]), backend_url=backend.url)
    (warning,) = warnings
    assert "did you mean 'online_pool'?" in warning


def test_rollouts_that_were_rewarded_before_say_so_at_the_first_and_the_tenth(
    session: SessionHandle,
) -> None:
    jobs = [RolloutJob.of(ROW, f"ticket-{number}") for number in range(12)]
    night = {"session": session, "program": ask, "max_workers": 1}
    with logged() as warnings:
        call("run_rollouts", jobs, reward=lambda *_: 1.0, **night)
        assert warnings == []
        call("run_rollouts", jobs[:1], reward=lambda *_: 1.0, **night)
        call("run_rollouts", jobs[1:], reward=lambda *_: 0.0, **night)
    repeated, conflicting = warnings
    assert "(1 so far): rollout 'ticket-0' had the same reward before" in repeated
    assert "(10 so far)" in conflicting
    for warning in warnings:
        assert "rollout id of its own" in warning


@both
def test_a_report_of_which_nothing_counts_says_so(twin: str, session: SessionHandle) -> None:
    rewards = {}
    for number in range(7):
        call("rollout_step", ROW, session=session, rollout_id=f"r{number}")
        rewards[f"r{number}"] = 1.0
    with logged() as warnings:
        call(f"{twin}report_rewards", session, rewards)
        assert warnings == []
        call(f"{twin}report_rewards", session, rewards)
        (repeated,) = warnings
        assert "7 rollouts had the same reward before" in repeated
        call(f"{twin}report_rewards", session, dict.fromkeys(rewards, 0.0))
    assert warnings[-1] == "2 more rewards did not count: see the report's problems"
