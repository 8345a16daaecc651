"""From words to a command and its exit code. Each command loads what it needs, and no more."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from prefect_mipro.cli.exits import PROGRAM, ExitCode, failed, say
from prefect_mipro.cli.parser import NEEDS, parser
from prefect_mipro.errors import MiproError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Exits with 2 when the arguments make none."""
    options, rest = parser().parse_known_args(arguments)
    if rest and not options.passed_on:
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command is None or getattr(options, "action", "") is None:
        options.parser.print_help(sys.stderr)
        return ExitCode.USAGE
    try:
        code = _run(options, rest)
        sys.stdout.flush()
        return code
    except MiproError as error:
        return failed(error)
    except ModuleNotFoundError as error:
        extra = NEEDS.get(options.command)
        if extra is None or (error.name or "").startswith("prefect_mipro"):
            raise
        say(
            f"{options.command} needs the package {error.name}, which is not installed; "
            f"install it with: pip install 'prefect-mipro[{extra}]'"
        )
        return ExitCode.FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Who reads has seen enough. Python would complain of it once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    match options.command:
        case "serve":
            from prefect_mipro.server.__main__ import main as serve

            return serve(rest, program=f"{PROGRAM} serve")
        case "db":
            from prefect_mipro.cli import database

            return database.run(options)
        case "demo":
            from prefect_mipro.cli import demo

            return demo.run(rest)
        case "keys":
            from prefect_mipro.cli import keys

            return keys.run(options)
        case "model":
            from prefect_mipro.cli import model

            return model.run(options)
        case "sessions":
            from prefect_mipro.cli import sessions

            return sessions.run(options)
        case "candidates" | "promote" | "retire" | "retire-lever":
            from prefect_mipro.cli import candidates

            return candidates.run(options)
        case _:
            from prefect_mipro.cli import doctor

            return doctor.run(options)
