"""`doctor`: each check as it is made, and an exit code that says whether anything is broken."""

from __future__ import annotations

from dataclasses import asdict

from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.cli.options import AddressOptions


def doctor(*, address: AddressOptions = AddressOptions()) -> ExitCode:
    """Find out what is wrong, and what to do.

    Checks Python, Prefect, its API and blocks, the backend, the key, the model
    behind it and the embedded model, and says what to do about each. Where no
    backend is named, it starts the embedded one for a moment. Exit code 1 when
    something is broken.

    Examples
      prefect-mipro doctor
      MIPRO_BACKEND_URL=https://mipro.example.com prefect-mipro doctor --json
    """
    from prefect_mipro.cli.checks import Check, Verdict, every_check

    output = address.output
    made: list[Check] = []
    for check in every_check(address.backend_url, address.api_key):
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
