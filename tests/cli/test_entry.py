"""The command `prefect-mipro`: what it finds, what it says when a part is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_mipro import __version__
from prefect_mipro.cli import main

RUN = "import sys\nfrom prefect_mipro.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def run(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after some lines of Python."""
    environment = {name: value for name, value in os.environ.items() if "MIPRO" not in name}
    return subprocess.run(
        [sys.executable, "-c", before + RUN, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"prefect-mipro {__version__}\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "serve" in out
    assert "model" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "prefect-mipro: argument command [options]: invalid choice: 'fly'"),
        (["model", "path", "--deep"], "prefect-mipro model path: unrecognized arguments: --deep"),
        (["sessions", "show"], "prefect-mipro sessions show: the following arguments are required"),
        (["sessions", "list", "--limit", "x"], "argument --limit: 'x' is not a number from 1 on"),
        (["sessions", "list", "--limit", "0"], "argument --limit: '0' is not a number from 1 on"),
    ],
)
def test_words_that_are_no_command_exit_with_2_and_lead_to_the_help(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    (what, way_out) = capsys.readouterr().err.splitlines()
    assert said in what
    assert way_out.endswith(" --help shows what there is")


@pytest.mark.parametrize("arguments", [[], ["sessions"], ["model"], ["keys"], ["db"]])
def test_a_command_that_is_not_finished_shows_how_to_go_on(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: " + " ".join(["prefect-mipro", *arguments]))
    assert "positional arguments:" in captured.err


def test_serve_has_the_servers_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: prefect-mipro serve")
    assert "MIPRO_SERVER_UPSTREAM_URL" in out


def test_serve_refuses_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--port", "many"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("prefect-mipro serve: --port")


@pytest.mark.parametrize("package", ["aiohttp", "numpy", "uvicorn", "pydantic_settings"])
def test_a_missing_server_part_is_one_line_that_says_how_to_install_it(
    tmp_path: Path, package: str
) -> None:
    missing = f"import sys\nsys.modules[{package!r}] = None\n"
    result = run(tmp_path, "serve", "--port", "0", before=missing)
    assert result.returncode == 1
    assert result.stderr == (
        f"prefect-mipro: serve needs the package {package}, which is not installed; "
        "install it with: pip install 'prefect-mipro[server]'\n"
    )


def test_importing_it_is_light(tmp_path: Path) -> None:
    program = (
        "import sys\nimport prefect_mipro.cli\n"
        "heavy = {'prefect', 'pydantic', 'fastapi', 'uvicorn', 'aiohttp', 'numpy', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


def test_a_bug_in_the_server_is_not_called_a_missing_package(tmp_path: Path) -> None:
    missing = "import sys\nsys.modules['prefect_mipro.server.settings'] = None\n"
    result = run(tmp_path, "serve", before=missing)
    assert "Traceback" in result.stderr
    assert "pip install" not in result.stderr


def test_the_models_path_is_the_only_word_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    monkeypatch.setenv("MIPRO_MODEL_PATH", str(model))
    assert main(["model", "path"]) == 0
    assert capsys.readouterr().out == f"{model}\n"


def test_a_missing_model_is_one_line_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MIPRO_MODEL_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["model", "path"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("prefect-mipro: the embedded model is not installed")
    assert "prefect-mipro model install" in captured.err
