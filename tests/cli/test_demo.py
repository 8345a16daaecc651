"""`demo`: the reference flow, wherever the package is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefect_mipro.cli import main
from prefect_mipro.cli.demo import flow_path
from prefect_mipro.cli.exits import ExitCode


def test_it_has_the_options_of_the_flow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: prefect-mipro demo ")
    assert "--rollouts" in out


def test_its_data_lies_beside_it() -> None:
    assert (flow_path().parent / "everyday_intents.toml").is_file()
    assert (flow_path().parent / "data" / "everyday_intents.jsonl").is_file()


def test_without_the_models_runtime_it_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["demo"]) == ExitCode.FAILED
    assert "pip install 'prefect-mipro[embedded]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
