"""How the command ends: exit codes, and what is said of an error."""

from __future__ import annotations

import sys
from enum import IntEnum

from prefect_mipro.errors import (
    BackendUnreachable,
    CandidateNotFound,
    InputInvalid,
    KeyRejected,
    MiproError,
    NotFound,
    SessionNotFound,
)

PROGRAM = "prefect-mipro"


class ExitCode(IntEnum):
    """What a script may tell apart."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    KEY_REFUSED = 5
    INTERRUPTED = 130


_CODES: dict[type[MiproError], ExitCode] = {
    NotFound: ExitCode.NOT_FOUND,
    BackendUnreachable: ExitCode.UNREACHABLE,
    KeyRejected: ExitCode.KEY_REFUSED,
    InputInvalid: ExitCode.USAGE,
}
_WAYS_OUT: dict[type[MiproError], str] = {
    SessionNotFound: f"{PROGRAM} sessions list shows those that are there",
    CandidateNotFound: f"{PROGRAM} candidates SESSION shows those that are there",
    BackendUnreachable: (
        f"start one with {PROGRAM} serve, name another with --backend-url or MIPRO_BACKEND_URL, "
        "or use the embedded one with --embedded"
    ),
    KeyRejected: "set MIPRO_API_KEY to one of the backend's keys",
}


def failed(error: MiproError) -> ExitCode:
    """Say what went wrong and what to do; the exit code that stands for it."""
    address = f" [{error.url}]" if error.url else ""
    say(f"{error.message}{address}")
    for kind, way in _WAYS_OUT.items():
        if isinstance(error, kind):
            say(way)
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), ExitCode.FAILED)


def say(message: str) -> None:
    """A line on standard error, which no pipe takes for an answer."""
    sys.stderr.write(f"{PROGRAM}: {message}\n")
