"""A flow that is killed and run again rewards nothing twice and leaves nothing unaccounted for."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.end_to_end.flow_crashes import ROLLOUTS, WORKERS, FlowCrashes


@pytest.mark.usefixtures("prefect_server")
def test_a_killed_flow_is_run_again_on_its_session_anew_or_as_the_same_run(tmp_path: Path) -> None:
    crashes = FlowCrashes(tmp_path, prefect_api_url=PREFECT_API_URL.value() or "", seed=1)
    with crashes.backend():
        crashes.kill_one()
        assert crashes.violations() == []
        before = crashes.status().rollout_count
        flow_run_id = crashes.kill_one()
        assert crashes.violations() == []
        ran = crashes.run_to_the_end(flow_run_id)
        assert crashes.violations() == []
        # Both of its attempts spend one budget, but for what was under way when a process died.
        assert 0 < ran.rollouts - WORKERS <= ran.rewarded <= ran.rollouts < ROLLOUTS
        spent = crashes.status().rollout_count - before
        assert ROLLOUTS - WORKERS <= spent <= ROLLOUTS
