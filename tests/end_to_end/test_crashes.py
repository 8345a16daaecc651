"""What was acknowledged is there, once, however often the process is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.crashes import Crashes
from tests.end_to_end.removal_crashes import RemovalCrashes

KILLS = 15
REMOVAL_KILLS = 6


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_counted_twice_by_fifteen_kills(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path, seed=0)
    with crashes.upstream():
        for number in range(KILLS):
            crashes.kill_one()
            assert crashes.violations() == [], f"after kill {number + 1}"
        assert crashes.told_by_the_next_server() == []
    ledger = crashes.ledger
    assert ledger.kills == KILLS
    assert min(len(ledger.pins), len(ledger.rewards)) > 10 * KILLS
    assert ledger.candidates


@pytest.mark.timeout(300)
def test_deletions_removals_and_requests_to_forget_survive_kills_and_are_ended(
    tmp_path: Path,
) -> None:
    crashes = RemovalCrashes(tmp_path, seed=0)
    with crashes.upstream():
        for number in range(REMOVAL_KILLS):
            crashes.kill_one()
            assert crashes.violations() == [], f"after kill {number + 1}"
        assert crashes.left_by_the_next_server() == []
    assert crashes.violations() == []
    assert crashes.removed
