"""`serve`: the backend server, whose settings are its options."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from prefect_mipro.cli.exits import PROGRAM

# The server writes the help of its own options.
serve = App(name="serve", help_flags=(), version_flags=())


@serve.default
def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run the backend server."""
    from prefect_mipro.server.__main__ import main

    return main(arguments, program=f"{PROGRAM} serve")
