"""The embedded model's file: fetched, or found."""

from __future__ import annotations

import argparse

from prefect_mipro.cli.exits import ExitCode, say
from prefect_mipro.cli.output import Output
from prefect_mipro.server.upstream import model_file


def run(options: argparse.Namespace) -> ExitCode:
    """Print its path. Raises ModelMissing."""
    path = model_file.install(say) if options.action == "install" else model_file.find()
    output = Output(as_json=options.json)
    output.outcome({"path": str(path), "model": model_file.MODEL_NAME}, str(path))
    return ExitCode.OK
