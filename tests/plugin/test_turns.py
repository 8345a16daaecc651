"""Runs without a backend of their own share one database on the machine, one after the other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.errors import Conflict
from prefect_mipro.flows.sessions import in_turn, some_backend


class AtTheWarning(logging.Handler):
    """Ends the run before as soon as the one after it says that it waits."""

    def __init__(self, before: EmbeddedBackend) -> None:
        super().__init__(logging.WARNING)
        self.before = before
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())
        self.before.stop()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "prefect-mipro"


def test_a_run_waits_for_the_one_before_and_says_so(folder: Path) -> None:
    logger = logging.getLogger("prefect.prefect_mipro")
    with EmbeddedBackend() as before:
        handler = AtTheWarning(before)
        logger.addHandler(handler)
        try:
            backend = in_turn(look_again_seconds=0.01)
        finally:
            logger.removeHandler(handler)
        backend.stop()
    (told,) = handler.told
    assert f"another run or server has the database in {folder} open" in told


@pytest.mark.usefixtures("folder")
def test_who_has_waited_long_enough_is_told_the_way_out() -> None:
    with (
        EmbeddedBackend(),
        pytest.raises(Conflict, match=r"prefect-mipro serve.* MIPRO_BACKEND_URL"),
    ):
        in_turn(longest_wait_seconds=0.0)


@pytest.mark.parametrize("variable", ["MIPRO_BACKEND_URL", "SYNTH_BACKEND_URL"])
def test_no_backend_is_started_where_the_environment_names_one(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://mipro.example")
    with some_backend() as url:
        assert url == "http://mipro.example"
