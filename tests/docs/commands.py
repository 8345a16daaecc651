"""Shell blocks: their syntax, and whether the commands, options and variables in them exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path

import pytest

from prefect_mipro.server.settings import ServerSettings
from tests.docs.pages import ROOT

# What is on a reader's machine or in an image; it is not ours to know their options.
FOREIGN = frozenset(
    "cd createdb curl docker git helm jq kubectl mkdir nano openssl pg_dump psql source".split()
)
VARIABLES = frozenset(
    {
        "MIPRO_API_KEY",
        "MIPRO_BACKEND_URL",
        "MIPRO_DATABASE_URL",
        *(f"MIPRO_SERVER_{field.upper()}" for field in ServerSettings.model_fields),
    }
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def check_shell(text: str, folder: Path) -> None:
    """Fail unless a shell can read the text and what it calls is there."""
    run = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    unknown = set(re.findall(r"\bMIPRO_[A-Z_]+\b", text)) - VARIABLES
    assert not unknown, f"no such variable: {', '.join(sorted(unknown))}"
    for words in _commands(text):
        _check(words, folder)


def _commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, each without the variables that are set for it."""
    # A comment takes the end of its line with it, so there is another one.
    lines = text.replace("\\\n", " ").replace("\n", "\n\n")
    lexer = shlex.shlex(lines, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*_tokens(lexer), "\n"]:
        if set(word) <= set("();|&\n") and word:
            if words:
                yield words
            words = []
        elif words or not _ASSIGNMENT.match(word):
            words.append(word)


def _tokens(lexer: shlex.shlex) -> Iterator[str]:
    while (token := lexer.get_token()) is not None and token != lexer.eof:
        yield token


def _check(words: list[str], folder: Path) -> None:
    program, *rest = words
    match program:
        case "export":
            pass
        case "pip" | "pip3":
            _check_requirements(rest)
        case "make":
            _check_targets(rest)
        case "python" | "python3":
            _check_script(rest, folder)
        case "prefect" | "prefect-mipro":
            _check_options(program, rest)
        case _:
            assert program in FOREIGN, f"{program}: no command that these pages may use"


def _check_requirements(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = set(project["optional-dependencies"])
    for extras in re.findall(r"prefect-mipro\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= known, f"no such extra: {extras}"


def _check_targets(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in words:
        assert "=" in target or re.search(rf"^{target}:", makefile, re.M), f"make {target}"


def _check_script(words: list[str], folder: Path) -> None:
    if words[:1] == ["-m"]:
        return
    script, *options = words
    found = next((place / script for place in (folder, ROOT) if (place / script).is_file()), None)
    assert found, f"no such script: {script}"
    for option in options:
        assert not option.startswith("--") or option in found.read_text("utf-8"), option


def _check_options(program: str, words: list[str]) -> None:
    words = [word for word in words if word not in {"--prompt", "--no-prompt"}]
    command = tuple(takewhile(lambda word: not word.startswith("-"), words))
    text = _help(program, command)
    for word in words[len(command) :]:
        option = re.match(r"--?[a-z][\w-]*", word)
        assert not option or re.search(rf"(?<![\w-]){option[0]}(?![\w-])", text), (
            f"{program} {' '.join(command)} has no option {word}"
        )


@cache
def _help(program: str, words: tuple[str, ...]) -> str:
    """What the command says of itself. It runs in this process: a new one takes seconds."""
    [script] = entry_points(group="console_scripts", name=program)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [program, *words, "--help"])
        patch.setenv("COLUMNS", "200")
        try:
            code = script.load()()
        except SystemExit as end:
            code = end.code
    assert not code, f"no such command: {program} {' '.join(words)}"
    return said.getvalue()
