"""What the door to the API asks of a store: keys, and whose a session is."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from prefect_mipro.models.keys import Key
from prefect_mipro.models.sessions import Session


class Access(Protocol):
    """What the services ask of a store about keys and workspaces."""

    async def keys(self) -> tuple[Key, ...]:
        """All of them, the revoked ones too, in the order in which they were made."""
        ...

    async def add_key(self, key: Key) -> None:
        """Insert it; a name that was ever given raises Conflict."""
        ...

    async def revoke_key(self, name: str, *, at: datetime) -> Key:
        """Take a key out of use for good. Raises NotFound; one that is revoked stays as it is."""
        ...

    async def workspace_of(self, session_id: str) -> str:
        """Whose the session is. Raises SessionNotFound."""
        ...

    async def rotate_secret(self, session_id: str, secret: str, *, at: datetime) -> Session:
        """Give the session's proxy URL another secret, in any state of the session."""
        ...
