"""The server's database: its schema brought forward, its copies made, its rows checked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from prefect_mipro.cli.exits import PROGRAM, ExitCode, say
from prefect_mipro.cli.options import DatabaseOptions
from prefect_mipro.cli.output import Output

if TYPE_CHECKING:
    from prefect_mipro.server.store.audit import Check
    from prefect_mipro.server.store.engine import Schema

app = App(
    name="db",
    help="""\
Look after the server's database.

Examples
  prefect-mipro db check --database-url sqlite:///mipro.db
  prefect-mipro db backup mipro-2026-11-23.db
  prefect-mipro db compact
  prefect-mipro db upgrade
""",
)


@app.command
def upgrade(*, database: DatabaseOptions = DatabaseOptions()) -> None:
    """Upgrade the schema to this release.

    A server that starts does so by itself.
    """
    from prefect_mipro.server.store.engine import inspected, open_store, schema_of

    async def upgraded() -> Schema:
        await (await open_store(database.url)).close()
        async with inspected(database.url) as opened:
            return await opened.read(schema_of)

    schema = asyncio.run(upgraded())
    database.output.outcome(
        {"schema": schema.present},
        f"the database has the schema {schema.present}, which is the newest",
    )


@app.command
def compact(*, database: DatabaseOptions = DatabaseOptions()) -> ExitCode:
    """Give free space back to the disk; no server may run."""
    from prefect_mipro.server.store import engine

    postgres = engine.postgres_url(database.url)
    if postgres is not None:
        _hand_over(
            engine.compact_command(postgres),
            database.output,
            "PostgreSQL compacts its tables by itself, and lets new rows have the room; to give it",
            "back to the disk, which stops servers for as long as it takes:",
        )
        return ExitCode.FAILED
    before, after = engine.compact(database.url)
    database.output.outcome(
        {"bytes_before": before, "bytes_after": after},
        f"the database takes {after:,} bytes, and took {before:,}",
    )
    return ExitCode.OK


@app.command
def backup(
    target: Annotated[Path, Parameter(help="The file to write; it must not be there.")],
    /,
    *,
    database: DatabaseOptions = DatabaseOptions(),
) -> ExitCode:
    """Copy the database into a file; a server may run."""
    from prefect_mipro.server.store.engine import dump_command, existing_file, postgres_url
    from prefect_mipro.server.store.files import copy_file

    postgres = postgres_url(database.url)
    if postgres is not None:
        _hand_over(
            dump_command(postgres, target),
            database.output,
            "PostgreSQL is copied by its own tool, which asks for the password or takes it",
            "from PGPASSWORD or ~/.pgpass; pg_restore reads the copy:",
        )
        return ExitCode.FAILED
    size_bytes = copy_file(existing_file(database.url), target)
    if database.as_json:
        database.output.document({"file": str(target), "size_bytes": size_bytes})
    else:
        say(f"wrote {target} ({size_bytes:,} bytes); it holds secrets of sessions")
    return ExitCode.OK


@app.command
def check(*, database: DatabaseOptions = DatabaseOptions()) -> ExitCode:
    """Check that the database is whole.

    Looks at the schema, the pages and the references, and compares each counter
    with what it counts; a server may run meanwhile. Exit code 1 when something
    is wrong.
    """
    from prefect_mipro.server.store.audit import audit
    from prefect_mipro.server.store.engine import inspected, schema_of

    async def checked() -> tuple[Schema, tuple[Check, ...]]:
        async with inspected(database.url) as opened:
            schema = await opened.read(schema_of)
            return schema, await opened.read(audit) if schema.is_current else ()

    schema, checks = asyncio.run(checked())
    is_whole = schema.is_current and not any(check.problems for check in checks)
    if database.as_json:
        database.output.document(
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
        _show(schema, checks, database.output)
    return ExitCode.OK if is_whole else ExitCode.FAILED


def _hand_over(command: str, output: Output, *words: str) -> None:
    """Show a command of PostgreSQL's own tools, and what to know of it."""
    if output.as_json:
        output.document({"command": command})
        return
    for line in words:
        say(line)
    output.line(command)


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
