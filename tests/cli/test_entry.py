"""The command `prefect-mipro`: what it finds, what it says when a part is missing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App
from rich.console import Console

from prefect_mipro import __version__
from prefect_mipro.cli import main
from prefect_mipro.cli.entry import COMMANDS, command_line
from prefect_mipro.cli.exits import ExitCode

RUN = "import sys\nfrom prefect_mipro.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def leaves() -> Iterator[tuple[str, ...]]:
    """Each command whose help cyclopts writes, as words."""
    pending: list[tuple[tuple[str, ...], App]] = [((), command_line())]
    while pending:
        words, app = pending.pop()
        names = [name for name in app if not name.startswith("-")]
        pending += [((*words, name), app[name]) for name in names]
        if words and not names and app.help_flags:
            yield words


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
    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == f"prefect-mipro {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_names_every_command_in_80_columns(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines if line.startswith("  ")}
    assert named >= {name for commands in COMMANDS.values() for name in commands}
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [*leaves()], ids=" ".join)
def test_each_command_has_a_sentence_examples_and_80_columns(words: tuple[str, ...]) -> None:
    app, stream = command_line(), io.StringIO()
    app.help_print(words, console=Console(file=stream, width=80))
    usage, _, sentence, *lines = stream.getvalue().splitlines()
    assert usage.startswith(f"Usage: prefect-mipro {' '.join(words)}")
    assert sentence.endswith(".")
    assert max(map(len, lines)) <= 80
    # Groups of small commands have the examples of all of them.
    assert "\nExamples\n  prefect-mipro" in f"{stream.getvalue()}{app[words[0]].help}"


def test_the_overview_says_of_each_command_what_its_own_help_says() -> None:
    app = command_line()
    for commands in COMMANDS.values():
        for name, command in commands.items():
            assert app[name].help.splitlines()[0] == command.summary


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], 'prefect-mipro: Unknown command "fly"'),
        (["sesions", "list"], 'Did you mean "sessions"?'),
        (
            ["sessions", "lst"],
            'prefect-mipro sessions: Unknown command "lst". Did you mean "list"?',
        ),
        (["sessions", "list", "--limt", "3"], "Unknown option: --limt. Did you mean --limit?"),
        (["sessions", "list", "--state", "runing"], 'Did you mean "running"?'),
        (["model", "path", "--deep"], "prefect-mipro model path: Unknown option: --deep"),
        (["sessions", "show"], "parameter SESSION requires an argument"),
        (["promote", "bot", "7", "8"], "prefect-mipro promote: Unused Tokens: ['8']"),
        (["sessions", "list", "--limit", "x"], '--limit: unable to convert "x" into int'),
        (["sessions", "list", "--limit", "0"], 'Invalid value "0" for --limit. Must be >= 1'),
        (["sessions", "list", "--limit", "-5"], 'Invalid value "-5" for --limit'),
        (["--verbose"], "--verbose"),
    ],
)
def test_words_that_are_no_command_exit_with_2_and_lead_to_the_help(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    (what, way_out) = captured.err.splitlines()
    assert said in what
    assert way_out.endswith(" --help shows what there is")
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [[], ["sessions"], ["model"], ["keys"], ["db"]])
def test_a_command_that_is_not_finished_shows_how_to_go_on(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    usage, *shown = captured.err.splitlines()
    assert usage == " ".join(["Usage: prefect-mipro", *arguments, "COMMAND"])
    assert len(shown) > 4


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_in_the_users_home(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", shell]) == ExitCode.OK
    (script,) = (
        file
        for file in tmp_path.rglob("*")
        if file.is_file() and file.name not in (".bashrc", ".zshrc")
    )
    assert str(script) in capsys.readouterr().out
    text = script.read_text("utf-8")
    assert all(word in text for word in ("sessions", "retire-lever", "rotate-url", "correlation"))


def test_bash_completes_commands_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "completion"
    assert main(["--install-completion", "--shell", "bash", "--output", str(script)]) == 0
    program = f"""
    source {script}
    complete_at() {{
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
      $(complete -p prefect-mipro | sed 's/.*-F \\([^ ]*\\).*/\\1/')
      echo "${{COMPREPLY[@]}}"
    }}
    complete_at prefect-mipro sess
    complete_at prefect-mipro sessions pa
    complete_at prefect-mipro sessions list --st
    """
    ran = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == ["sessions", "pause", "--state"]


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
