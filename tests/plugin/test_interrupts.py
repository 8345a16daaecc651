"""Ctrl-C while a run goes on: rollouts under way end first, and their rewards count."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_mipro.tasks import LiveRollout, SessionHandle, session_status
from tests.embedded_backend import backend_in
from tests.fake_upstream import Body, FakeUpstream
from tests.plugin.test_flow import Row, classify, optimize

pytestmark = pytest.mark.usefixtures("prefect_server")


def takes_its_time(_body: Body) -> str:
    time.sleep(0.5)
    return "label0"


def interrupts(rollout: LiveRollout, row: Row) -> str:
    """The first of them presses Ctrl-C between its two calls, while the others are at theirs."""
    classify(rollout, row)
    if rollout.rollout_id.endswith("-0"):
        os.kill(os.getpid(), signal.SIGINT)
    return classify(rollout, row)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a terminal does: programs that a shell runs in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_what_is_under_way_still_reaches_an_embedded_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeUpstream(takes_its_time) as model:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        monkeypatch.setenv("MIPRO_SERVER_UPSTREAM_URL", model.url)
        with pytest.raises(KeyboardInterrupt):
            optimize(session_id="interrupted", program=interrupts, rollouts=60, max_workers=4)
        with backend_in(tmp_path / "prefect-mipro", model) as backend:
            handle = SessionHandle(session_id="interrupted", backend_url=backend.url)
            status = session_status.fn(handle)
    assert 0 < status.reward_count == status.rollout_count < 60
