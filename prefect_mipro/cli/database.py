"""The server's database: its schema brought forward, its copies made, its rows checked."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from prefect_mipro.cli.database_url import database_url
from prefect_mipro.cli.exits import PROGRAM, ExitCode, say
from prefect_mipro.cli.output import Output
from prefect_mipro.server.store.audit import Check, audit
from prefect_mipro.server.store.engine import (
    Schema,
    compact,
    compact_command,
    dump_command,
    existing_file,
    inspected,
    open_store,
    postgres_url,
    schema_of,
)
from prefect_mipro.server.store.files import copy_file


def run(options: argparse.Namespace) -> ExitCode:
    """One of the actions on the database. Raises what the database refuses."""
    output = Output(as_json=options.json)
    url = database_url(options.database_url)
    match options.action:
        case "upgrade":
            return _upgrade(url, output)
        case "compact":
            return _compact(url, output)
        case "backup":
            return _back_up(url, Path(options.target), output)
        case _:
            return _check(url, output)


def _upgrade(url: str, output: Output) -> ExitCode:
    async def upgraded() -> Schema:
        await (await open_store(url)).close()
        async with inspected(url) as database:
            return await database.read(schema_of)

    schema = asyncio.run(upgraded())
    output.outcome(
        {"schema": schema.present},
        f"the database has the schema {schema.present}, which is the newest",
    )
    return ExitCode.OK


def _back_up(url: str, target: Path, output: Output) -> ExitCode:
    postgres = postgres_url(url)
    if postgres is not None:
        _hand_over(
            dump_command(postgres, target),
            output,
            "PostgreSQL is copied by its own tool, which asks for the password or takes it",
            "from PGPASSWORD or ~/.pgpass; pg_restore reads the copy:",
        )
        return ExitCode.FAILED
    size_bytes = copy_file(existing_file(url), target)
    if output.as_json:
        output.document({"file": str(target), "size_bytes": size_bytes})
    else:
        say(f"wrote {target} ({size_bytes:,} bytes); it holds secrets of sessions")
    return ExitCode.OK


def _compact(url: str, output: Output) -> ExitCode:
    postgres = postgres_url(url)
    if postgres is not None:
        _hand_over(
            compact_command(postgres),
            output,
            "PostgreSQL compacts its tables by itself, and lets new rows have the room; to give it",
            "back to the disk, which stops servers for as long as it takes:",
        )
        return ExitCode.FAILED
    before, after = compact(url)
    output.outcome(
        {"bytes_before": before, "bytes_after": after},
        f"the database takes {after:,} bytes, and took {before:,}",
    )
    return ExitCode.OK


def _hand_over(command: str, output: Output, *words: str) -> None:
    """Show a command of PostgreSQL's own tools, and what to know of it."""
    if output.as_json:
        output.document({"command": command})
        return
    for line in words:
        say(line)
    output.line(command)


def _check(url: str, output: Output) -> ExitCode:
    async def checked() -> tuple[Schema, tuple[Check, ...]]:
        async with inspected(url) as database:
            schema = await database.read(schema_of)
            return schema, await database.read(audit) if schema.is_current else ()

    schema, checks = asyncio.run(checked())
    is_whole = schema.is_current and not any(check.problems for check in checks)
    if output.as_json:
        output.document(
            {
                "ok": is_whole,
                "schema": schema.present or None,
                "newest_schema": schema.newest,
                "checks": [
                    {"name": check.name, "problems": list(check.problems)} for check in checks
                ],
            }
        )
    else:
        _show(schema, checks, output)
    return ExitCode.OK if is_whole else ExitCode.FAILED


def _show(schema: Schema, checks: tuple[Check, ...], output: Output) -> None:
    if schema.is_current:
        output.mark("ok", f"schema {schema.present}")
    else:
        found = f"schema {schema.present}" if schema.present else "no schema"
        way_out = f"{PROGRAM} db upgrade, or start the server: then check again"
        output.mark("broken", f"{found}, and this release has {schema.newest}", way_out)
    for check in checks:
        if check.problems:
            output.mark("broken", f"{check.name}: {'; '.join(check.problems)}", _WAY_OUT)
        else:
            output.mark("ok", check.name)


_WAY_OUT = "keep a copy of the database as it is, restore a backup, and report what is said here"
