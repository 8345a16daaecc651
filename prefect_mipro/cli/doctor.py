"""`doctor`: each check as it is made, and an exit code that says whether anything is broken."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from prefect_mipro.cli.checks import Check, Verdict, every_check
from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.cli.output import Output


def run(options: argparse.Namespace) -> ExitCode:
    """Check everything; FAILED when something is broken."""
    output = Output(as_json=options.json)
    made: list[Check] = []
    for check in every_check(options):
        made.append(check)
        if not output.as_json:
            output.mark(check.verdict, f"{check.name}: {check.found}", check.way_out)
    broken = [check.name for check in made if check.verdict is Verdict.BROKEN]
    if output.as_json:
        output.document({"ok": not broken, "checks": [asdict(check) for check in made]})
    else:
        output.line("")
        output.line(f"broken: {', '.join(broken)}" if broken else "nothing is broken")
    return ExitCode.FAILED if broken else ExitCode.OK
