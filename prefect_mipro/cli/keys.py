"""Keys of the server, made and revoked in its database; a running server notices."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from prefect_mipro.cli.database_url import database_url
from prefect_mipro.cli.exits import PROGRAM, ExitCode, say
from prefect_mipro.cli.output import Column, Output, moment
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import ID_CHARACTERS, JsonObject
from prefect_mipro.models.keys import Key, KeyName
from prefect_mipro.server.services.identity import new_id
from prefect_mipro.server.services.keys import digest_of, new_key
from prefect_mipro.server.store.engine import existing_file, open_beside_server, postgres_url
from prefect_mipro.server.store.store import Store

T = TypeVar("T")

_COLUMNS = (
    Column("name"),
    Column("workspace"),
    Column("created (UTC)"),
    Column("revoked (UTC)"),
)
_NAMES: TypeAdapter[str] = TypeAdapter(KeyName)


def run(options: argparse.Namespace) -> ExitCode:
    """One of the actions on keys. Raises what the database refuses."""
    output = Output(as_json=options.json)
    url = database_url(options.database_url)
    match options.action:
        case "create":
            _create(url, output, name=options.name, workspace=options.workspace)
        case "revoke":
            _must_be_there(url)
            _revoke(url, output, name=options.name)
        case _:
            _must_be_there(url)
            _list(url, output)
    return ExitCode.OK


def _must_be_there(url: str) -> None:
    """Raises StoreFailed where nothing is: a mistyped name would become a new, empty database."""
    if postgres_url(url) is None:
        existing_file(url)


def _create(url: str, output: Output, *, name: str, workspace: str) -> None:
    secret = new_key()
    key = Key(
        key_id=new_id("key"),
        name=_usable("the name", name),
        workspace=_usable("the workspace", workspace),
        digest=digest_of(secret),
        created_at=datetime.now(UTC),
    )
    _asked(url, lambda store: store.add_key(key))
    if output.as_json:
        output.document({**_told(key), "key": secret.get_secret_value()})
        return
    say(f"key {key.name} of workspace {key.workspace}; it is shown this once, keep it now")
    output.line(secret.get_secret_value())


def _revoke(url: str, output: Output, *, name: str) -> None:
    now = datetime.now(UTC)
    key = _asked(url, lambda store: store.revoke_key(name, at=now))
    output.outcome(_told(key), f"{key.name} is revoked; servers refuse it within a second")


def _list(url: str, output: Output) -> None:
    keys: Sequence[Key] = _asked(url, lambda store: store.keys())
    if output.as_json:
        output.document({"items": [_told(key) for key in keys]})
    elif keys:
        output.table(_COLUMNS, [_row(key) for key in keys])
    else:
        say(f"the database holds no key; {PROGRAM} keys create NAME makes one")


def _asked(url: str, question: Callable[[Store], Awaitable[T]]) -> T:
    async def asked() -> T:
        store = await open_beside_server(url)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(asked())


def _usable(what: str, value: str) -> str:
    try:
        return _NAMES.validate_python(value)
    except ValidationError:
        raise InputInvalid(
            f"{what} is {value[:80]!r}; use up to {ID_CHARACTERS} letters, digits, "
            "'_', '-', '.', ':' or '~', beginning with a letter or digit"
        ) from None


def _row(key: Key) -> tuple[str, ...]:
    return key.name, key.workspace, moment(key.created_at), moment(key.revoked_at)


def _told(key: Key) -> JsonObject:
    """All but its digest, which is nobody's business."""
    return key.model_dump(mode="json", exclude={"digest"})
