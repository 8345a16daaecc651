"""A session read from a file, or from standard input, and sent to a backend piece by piece."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from prefect_mipro.cli.exits import PROGRAM
from prefect_mipro.cli.output import Output
from prefect_mipro.client.clients import Client
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.exports import EXPORT_FORMAT, ImportReceipt, Part

LINES_AT_ONCE = 500
# A backend reads ten times as much by default, and one line may be as large as a call.
BYTES_AT_ONCE = 1_000_000

STANDARD_INPUT = "-"


def run(client: Client, output: Output, file: str) -> None:
    """Import one session. Raises InputInvalid for a file that is no export, or not a whole one."""
    session_id = ""
    receipt: ImportReceipt | None = None
    with _opened(file) as opened:
        for piece in _pieces(_lines(opened, file)):
            session_id = session_id or _session_id(piece[0], file)
            receipt = client.import_lines(session_id, piece)
    if receipt is None or not receipt.complete:
        raise InputInvalid(f"{file} ends before its last line; export the session again")
    state = client.session_status(session_id).status
    way_on = "" if state.final else f": {PROGRAM} sessions resume {session_id}"
    output.outcome(
        {"session_id": session_id, "state": state},
        f"{session_id} is here, and {state}{way_on}",
    )


def _pieces(lines: Iterable[tuple[JsonObject, int]]) -> Iterator[list[JsonObject]]:
    """As many lines as may be sent at once."""
    piece: list[JsonObject] = []
    size_bytes = 0
    for line, line_bytes in lines:
        if piece and (len(piece) == LINES_AT_ONCE or size_bytes + line_bytes > BYTES_AT_ONCE):
            yield piece
            piece, size_bytes = [], 0
        piece.append(line)
        size_bytes += line_bytes
    if piece:
        yield piece


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[JsonObject, int]]:
    """Each line and its length."""
    try:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise InputInvalid(f"line {number} of {name} is no JSON object; export it again")
            yield line, len(text)
    except (EOFError, OSError, zlib.error) as error:
        raise InputInvalid(f"cannot read {name}: {error}; export the session again") from None


def _session_id(first: JsonObject, name: str) -> str:
    if first.get("part") != Part.SESSION or first.get("format") != EXPORT_FORMAT:
        raise InputInvalid(
            f"{name} is no export of a session; {PROGRAM} sessions export SESSION makes one"
        )
    return str(first.get("session_id"))


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with ExitStack() as opened:
        try:
            file = opened.enter_context(open(name, "rb"))
        except OSError as error:
            raise InputInvalid(f"cannot read {name}: {error.strerror}; name an export") from None
        if name.endswith(".gz"):
            yield cast(IO[bytes], opened.enter_context(gzip.GzipFile(fileobj=file)))
        else:
            yield file
