"""What services remember between calls: only what never changes once it is stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from prefect_mipro.config import MiproConfig
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import LeverName, LeverVersion
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.store.interface import Store

REMEMBERED_SESSIONS = 256
REMEMBERED_CANDIDATES = 4_096

T = TypeVar("T")


class Knowledge:
    """Parsed configs and lever versions of the sessions seen last.

    Both are immutable facts, so that any number of processes may each remember them. They go by
    the ids of candidates: a session that was deleted leaves its own id to another one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._configs: Recent[MiproConfig] = Recent(REMEMBERED_SESSIONS)
        self._levers: Recent[dict[LeverName, LeverVersion]] = Recent(REMEMBERED_CANDIDATES)
        self._candidates: OrderedDict[str, Candidate] = OrderedDict()

    async def candidate(self, candidate_id: str) -> Candidate:
        """The candidate: its session, number and lever versions. Raises CandidateNotFound.

        Its statistics, and whether it is retired, are as they were when it was first asked for.
        """
        known = self._candidates.get(candidate_id)
        if known is None:
            known = self._candidates[candidate_id] = await self._store.candidate(candidate_id)
            if len(self._candidates) > REMEMBERED_CANDIDATES:
                self._candidates.popitem(last=False)
        return known

    def config(self, session: Session) -> MiproConfig:
        """The session's config, parsed once."""
        return self._configs.get(session.baseline_id, lambda: MiproConfig.parse(session.config))

    async def prompt_of(self, candidate: Candidate) -> tuple[LeverVersion, LeverVersion]:
        """The candidate's instruction and demonstrations."""
        known = self._levers.get(candidate.candidate_id, dict)
        if not known:
            wanted = (
                (LeverName.INSTRUCTION, candidate.instruction_version),
                (LeverName.DEMONSTRATIONS, candidate.demonstrations_version),
            )
            for version in await self._store.levers(candidate.session_id):
                if (version.lever, version.version) in wanted:
                    known[version.lever] = version
        return known[LeverName.INSTRUCTION], known[LeverName.DEMONSTRATIONS]


class Recent(Generic[T]):
    """The values used last, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]
