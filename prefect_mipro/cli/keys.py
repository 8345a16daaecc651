"""Keys of the server, made and revoked in its database; a running server notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import App, Parameter

from prefect_mipro.cli.exits import PROGRAM, say
from prefect_mipro.cli.options import DatabaseOptions
from prefect_mipro.cli.output import Column, moment
from prefect_mipro.errors import InputInvalid

if TYPE_CHECKING:
    from prefect_mipro.models.base import JsonObject
    from prefect_mipro.models.keys import Key
    from prefect_mipro.server.store.store import Store

T = TypeVar("T")

# The workspace of the keys in the server's settings.
DEFAULT_WORKSPACE = "default"

app = App(
    name="keys",
    help="""\
Let callers in, and keep them out again.

Keys live in the server's database, beside those of MIPRO_SERVER_API_KEYS.
Each belongs to a workspace and sees the sessions of that one only. Only a
digest is kept: a key is shown once. A running server notices within a second.

Examples
  prefect-mipro keys create nightly-flow
  prefect-mipro keys create ada --workspace research
  prefect-mipro keys list
  prefect-mipro keys revoke ada
""",
)

_COLUMNS = (
    Column("name"),
    Column("workspace"),
    Column("created (UTC)"),
    Column("revoked (UTC)"),
)


@app.command
def create(
    name: Annotated[str, Parameter(help="Whose it is, or what it is for.")],
    /,
    *,
    workspace: Annotated[str, Parameter(help="Whose sessions it sees.")] = DEFAULT_WORKSPACE,
    database: DatabaseOptions = DatabaseOptions(),
) -> None:
    """Make a key, and print it this once."""
    from prefect_mipro.models.keys import Key
    from prefect_mipro.server.ids import new_id
    from prefect_mipro.server.services.access import digest_of, new_key

    secret = new_key()
    key = Key(
        key_id=new_id("key"),
        name=_usable("the name", name),
        workspace=_usable("the workspace", workspace),
        digest=digest_of(secret),
        created_at=datetime.now(UTC),
    )
    _asked(database, lambda store: store.add_key(key))
    if database.as_json:
        database.output.document({**_told(key), "key": secret.get_secret_value()})
        return
    say(f"key {key.name} of workspace {key.workspace}; it is shown this once, keep it now")
    database.output.line(secret.get_secret_value())


@app.command(name="list")
def list_keys(*, database: DatabaseOptions = DatabaseOptions()) -> None:
    """List the keys, the revoked ones too."""
    _must_be_there(database.url)
    keys: Sequence[Key] = _asked(database, lambda store: store.keys())
    if database.as_json:
        database.output.document({"items": [_told(key) for key in keys]})
    elif keys:
        database.output.table(_COLUMNS, [_row(key) for key in keys])
    else:
        say(f"the database holds no key; {PROGRAM} keys create NAME makes one")


@app.command
def revoke(
    name: Annotated[str, Parameter(help="The key's name.")],
    /,
    *,
    database: DatabaseOptions = DatabaseOptions(),
) -> None:
    """Take a key out of use for good."""
    _must_be_there(database.url)
    now = datetime.now(UTC)
    key = _asked(database, lambda store: store.revoke_key(name, at=now))
    database.output.outcome(_told(key), f"{key.name} is revoked; servers refuse it within a second")


def _must_be_there(url: str) -> None:
    """Raise StoreFailed for a file that is not there: a mistyped name would become a new one."""
    from prefect_mipro.server.store.engine import existing_file, postgres_url

    if postgres_url(url) is None:
        existing_file(url)


def _asked(database: DatabaseOptions, question: Callable[[Store], Awaitable[T]]) -> T:
    from prefect_mipro.server.store.engine import open_beside_server

    async def asked() -> T:
        store = await open_beside_server(database.url)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(asked())


def _usable(what: str, value: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from prefect_mipro.models.base import ID_CHARACTERS
    from prefect_mipro.models.keys import KeyName

    names: TypeAdapter[str] = TypeAdapter(KeyName)
    try:
        return names.validate_python(value)
    except ValidationError:
        raise InputInvalid(
            f"{what} is {value[:80]!r}; use up to {ID_CHARACTERS} letters, digits, "
            "'_', '-', '.', ':' or '~', beginning with a letter or digit"
        ) from None


def _row(key: Key) -> tuple[str, ...]:
    return key.name, key.workspace, moment(key.created_at), moment(key.revoked_at)


def _told(key: Key) -> JsonObject:
    """The key without its digest."""
    return key.model_dump(mode="json", exclude={"digest"})
