"""What a server does to the garbage collector of its process, and how it leaves it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from prefect_mipro.server.garbage import THRESHOLDS, rarely_collected


@pytest.fixture
def nothing_frozen() -> Iterator[None]:
    """The test runner has frozen what its imports made, and does so again."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("nothing_frozen")
def test_what_is_there_is_left_out_until_the_end() -> None:
    with rarely_collected():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("nothing_frozen")
def test_what_somebody_else_has_frozen_stays_so_and_nothing_is_added() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    added = [[number] for number in range(1_000)]
    with rarely_collected():
        assert gc.get_freeze_count() <= frozen
    assert 0 < gc.get_freeze_count() <= frozen
    assert len(added) == 1_000


def test_thresholds_are_given_back() -> None:
    before = gc.get_threshold()
    with rarely_collected():
        assert gc.get_threshold() == THRESHOLDS
    assert gc.get_threshold() == before
