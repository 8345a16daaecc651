"""From words to a command and its exit code. Each command loads what it needs, and no more."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefect_mipro import __version__
from prefect_mipro.cli.exits import PROGRAM, ExitCode, failed, say
from prefect_mipro.errors import MiproError

if TYPE_CHECKING:
    from cyclopts import App


class Command(NamedTuple):
    """A command: the function or group of commands behind it, and the extra that it needs."""

    target: str
    summary: str
    extra: str | None = None


# To add a command, write its function and name it here.
COMMANDS = {
    "Start here": {
        "demo": Command(
            "demo:demo", "Optimize a prompt with the embedded model; no key.", "embedded"
        ),
        "doctor": Command("doctor:doctor", "Find out what is wrong, and what to do."),
        "config": Command("config:app", "Check a session config before it is used."),
        "serve": Command("serve:serve", "Run the backend server.", "server"),
    },
    "Sessions": {
        "sessions": Command("sessions:app", "Look after the sessions of a backend."),
        "candidates": Command(
            "candidates:candidates", "Show the candidates of a session, or one of them."
        ),
        "rollouts": Command("rollouts:app", "Show what was asked and answered, the worst first."),
        "traces": Command("rollouts:traces", "Show the calls of a rollout whole."),
        "promote": Command("candidates:promote", "Make a candidate the champion."),
        "retire": Command("candidates:retire", "Take a candidate out of play."),
        "retire-lever": Command(
            "candidates:retire_lever", "Retire all candidates that hold a lever version."
        ),
        "reviews": Command("reviews:app", "Decide which texts of users other users are shown."),
    },
    "Server": {
        "keys": Command("keys:app", "Let callers in, and keep them out again.", "server"),
        "db": Command("database:app", "Look after the server's database.", "server"),
        "model": Command("model:app", "Fetch the embedded model, which needs no key.", "embedded"),
    },
}
_OPTIONS = {
    "--help, -h": "Show this text, or the help of a command with examples.",
    "--install-completion": "Complete commands and options in bash, zsh or fish.",
    "--version": "Show the version.",
}
_EXIT_CODES = """\
Exit codes
  0 done   1 failed   2 not understood   3 no such session or candidate
  4 backend out of reach   5 key refused   130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except MiproError as error:
        return failed(error)
    except ModuleNotFoundError as error:
        extra = _extra(words[0])
        if extra is None or (error.name or "").startswith("prefect_mipro"):
            raise
        say(
            f"{words[0]} needs the package {error.name}, which is not installed; "
            f"install it with: pip install 'prefect-mipro[{extra}]'"
        )
        return ExitCode.FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _run(words: list[str]) -> int:
    # These come before cyclopts, whose import takes longer than they do.
    if not words:
        sys.stderr.write(overview())
        return ExitCode.USAGE
    if words[0] in ("--help", "-h"):
        sys.stdout.write(overview())
        return ExitCode.OK
    if words[0] == "--version":
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        return ExitCode.OK
    from cyclopts import CycloptsError

    app = command_line()
    try:
        chain, apps, rest = app.parse_commands(words)
        if not rest and apps[-1].default_command is None:
            app.help_print(chain, console=app.error_console)
            return ExitCode.USAGE
        return app(words) or ExitCode.OK
    except CycloptsError as error:
        command = " ".join([PROGRAM, *(error.command_chain or ())])
        sys.stderr.write(f"{command}: {error}\n")
        say(f"{command} --help shows what there is")
        return ExitCode.USAGE


def command_line() -> App:
    """The whole command as cyclopts knows it."""
    from cyclopts import App

    app = App(
        name=PROGRAM,
        version=f"{PROGRAM} {__version__}",
        help_format="plaintext",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for commands in COMMANDS.values():
        for name, command in commands.items():
            app.command(f"{__package__}.{command.target}", name=name)
    app.register_install_completion_command(help=_OPTIONS["--install-completion"])
    return app


def overview() -> str:
    """The help of the whole command."""
    lines = [f"Usage: {PROGRAM} COMMAND", "", "Online prompt optimization with MIPRO, on Prefect."]
    summaries = {
        group: {name: command.summary for name, command in commands.items()}
        for group, commands in COMMANDS.items()
    }
    for group, words in {**summaries, "Options": _OPTIONS}.items():
        lines += ["", group, *(f"  {word:<22}{text}" for word, text in words.items())]
    return "\n".join([*lines, "", _EXIT_CODES])


def _extra(name: str) -> str | None:
    return next((each[name].extra for each in COMMANDS.values() if name in each), None)
