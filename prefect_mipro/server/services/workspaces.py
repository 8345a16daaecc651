"""Whose a session is: who asks for another's is told what is told of an unknown one."""

from __future__ import annotations

from prefect_mipro.errors import CandidateNotFound, SessionNotFound
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.services.live import Live
from prefect_mipro.server.store.store import Store


class Workspaces:
    """The workspaces of all sessions."""

    def __init__(self, store: Store, live: Live, knowledge: Knowledge) -> None:
        self._store = store
        self._live = live
        self._knowledge = knowledge

    async def check_session(self, session_id: str, workspace: str) -> None:
        """Raise SessionNotFound unless it is one of the workspace's."""
        if await self._of(session_id) != workspace:
            raise SessionNotFound.of(session_id)

    async def check_candidate(self, candidate_id: str, workspace: str) -> None:
        """Raise CandidateNotFound unless it is one of a session of the workspace."""
        candidate = await self._knowledge.candidate(candidate_id)
        if await self._of(candidate.session_id) != workspace:
            raise CandidateNotFound.of(candidate_id)

    async def _of(self, session_id: str) -> str:
        held = self._live.held(session_id)
        return held.workspace if held else await self._store.workspace_of(session_id)
