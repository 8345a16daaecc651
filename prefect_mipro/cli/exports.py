"""A session written to a file, or to standard output, line by line as it comes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from prefect_mipro.cli.exits import say
from prefect_mipro.cli.output import Output
from prefect_mipro.client import operations
from prefect_mipro.client.clients import Client
from prefect_mipro.errors import BackendUnreachable, InputInvalid
from prefect_mipro.models.exports import Part


def run(client: Client, output: Output, session: str, file: str | None, *, traces: bool) -> None:
    """Export one session. A file is there whole, or not at all."""
    operation = operations.export_session(session, traces=traces)
    if file is None:
        if output.as_json:
            raise InputInvalid("an export is many documents; give --output FILE with --json")
        with client.stream(operation) as lines:
            _write(lines, sys.stdout.buffer)
        return
    path = Path(file)
    with client.stream(operation) as lines, _new_file(path) as opened:
        counts = _write(lines, opened)
    if output.as_json:
        output.document({"path": str(path), "size_bytes": path.stat().st_size, "lines": counts})
    else:
        told = ", ".join(f"{count} {part}" for part, count in counts.items() if count)
        say(f"wrote {path} ({path.stat().st_size:,} bytes): {told}")


def _write(lines: Iterable[bytes], file: BinaryIO) -> dict[str, int]:
    """Write them all, and return how many of each part. Raises BackendUnreachable if some lack."""
    last = b""
    for line in lines:
        file.write(line + b"\n")
        last = line
    file.flush()
    end = json.loads(last) if last else {}
    if end.get("part") != Part.END:
        raise BackendUnreachable("the export was cut off before its end; ask again")
    counts: dict[str, int] = end["lines"]
    return counts


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` at the end, and is only its owner's to read."""
    part = path.with_name(f"{path.name}.part")
    try:
        with ExitStack() as opened:
            # One that a killed export has left may be of another mode.
            part.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            file: BinaryIO = opened.enter_context(os.fdopen(os.open(part, flags, 0o600), "wb"))
            if path.suffix == ".gz":
                packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0)
                file = cast(BinaryIO, opened.enter_context(packed))
            yield file
        part.replace(path)
    except OSError as error:
        raise InputInvalid(
            f"cannot write {path}: {error.strerror}; name another file with --output"
        ) from None
    finally:
        part.unlink(missing_ok=True)
