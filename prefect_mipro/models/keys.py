"""Keys that callers of the API send, and the workspaces that they belong to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import StringConstraints

from prefect_mipro.models.base import ID_CHARACTERS, ID_PATTERN, Record

# Of the keys in the server's settings, of sessions from before, and of servers without keys.
DEFAULT_WORKSPACE = "default"

KeyName = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS)]
Workspace = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS)]


class Key(Record):
    """A key as the database holds it; `digest` is the SHA-256 of what callers send, in hex."""

    key_id: str
    name: KeyName
    workspace: Workspace
    digest: str
    created_at: datetime
    revoked_at: datetime | None = None
