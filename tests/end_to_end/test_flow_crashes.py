"""A flow that is killed and run again rewards nothing twice and leaves nothing unaccounted for."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.end_to_end.flow_crashes import FlowCrashes

KILLS = 2
ROLLOUTS = 30


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("prefect_server")
def test_a_killed_flow_that_is_run_again_goes_on_where_it_was(tmp_path: Path) -> None:
    crashes = FlowCrashes(tmp_path, prefect_api_url=PREFECT_API_URL.value() or "", seed=1)
    with crashes.backend():
        for number in range(KILLS):
            crashes.kill_one()
            assert crashes.violations() == [], f"after kill {number + 1}"
        before = crashes.status().rollout_count
        ran = crashes.run_to_the_end(rollouts=ROLLOUTS)
        assert (ran.rollouts, ran.rewarded) == (ROLLOUTS, ROLLOUTS)
        assert crashes.violations() == []
        assert crashes.status().rollout_count == before + ROLLOUTS
