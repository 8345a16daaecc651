"""The command `prefect-mipro`: serve the backend, install the embedded model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from prefect_mipro import __version__
from prefect_mipro.errors import MiproError

PROGRAM = "prefect-mipro"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Exits with 2 when the arguments make none."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        if options.command == "serve":
            return _serve(rest)
        if rest:
            _parser().error(f"unrecognized arguments: {' '.join(rest)}")
        return _model(options.action)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("prefect_mipro"):
            raise
        return _fail(
            f"{options.command} needs the package {error.name}, which is not installed; "
            f"install it with: pip install 'prefect-mipro[{_EXTRA[options.command]}]'"
        )


_EXTRA = {"serve": "server", "model": "embedded"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Online prompt optimization with MIPRO, on Prefect."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    # Its options belong to the server's settings, which also write its help.
    commands.add_parser("serve", add_help=False, help="run the backend server (serve --help)")
    model = commands.add_parser("model", help="the embedded model: a small one that needs no key")
    actions = model.add_subparsers(dest="action", metavar="action", required=True)
    actions.add_parser("install", help="fetch the model's file, once")
    actions.add_parser("path", help="print where the file is")
    return parser


def _serve(arguments: Sequence[str]) -> int:
    from prefect_mipro.server.__main__ import main as serve

    return serve(arguments, program=f"{PROGRAM} serve")


def _model(action: str) -> int:
    from prefect_mipro.server.upstream import model_file

    try:
        path = model_file.install(_tell) if action == "install" else model_file.find()
    except MiproError as error:
        return _fail(error.message)
    print(path)
    return 0


def _fail(message: str) -> int:
    _tell(message)
    return 1


def _tell(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
