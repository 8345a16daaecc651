"""What services keep in memory between calls: only what never changes once it is stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from prefect_mipro.config import MiproConfig
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import LeverName, LeverVersion
from prefect_mipro.models.sessions import Session
from prefect_mipro.server.store.store import Store

# The approximate memory that each cache may take.
LARGEST_CONFIGS_BYTES = 64 * 2**20
LARGEST_LEVERS_BYTES = 64 * 2**20
LARGEST_CANDIDATES_BYTES = 32 * 2**20

# Measured: the memory of an object without its texts.
SESSION_BYTES = 8_000
CANDIDATE_BYTES = 3_000
LEVER_BYTES = 3_000
DEMONSTRATION_BYTES = 1_000
ENTRY_BYTES = 200

T = TypeVar("T")


class _Parsed(NamedTuple):
    config: MiproConfig
    size_bytes: int


class Knowledge:
    """A cache of parsed configs, candidates and lever versions, bounded by their memory.

    All of these are immutable, so that any number of processes may each hold them. Keys are
    the ids of candidates: a session that was deleted leaves its own id to another one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._configs: Recent[_Parsed] = Recent(LARGEST_CONFIGS_BYTES)
        self._levers: Recent[tuple[LeverVersion, LeverVersion]] = Recent(LARGEST_LEVERS_BYTES)
        self._candidates: Recent[Candidate] = Recent(LARGEST_CANDIDATES_BYTES)

    async def candidate(self, candidate_id: str) -> Candidate:
        """The candidate: its session, number and lever versions. Raises CandidateNotFound.

        Its statistics, and whether it is retired, are as they were when it was first asked for.
        """
        known = self._candidates.get(candidate_id)
        if known is None:
            known = await self._store.candidate(candidate_id)
            self._candidates.put(candidate_id, known, size_bytes=CANDIDATE_BYTES)
        return known

    def config(self, session: Session) -> MiproConfig:
        """The session's config, parsed once."""
        return self._parsed(session).config

    def size_bytes(self, session: Session) -> int:
        """The approximate memory of the session, mostly its config and metadata."""
        return self._parsed(session).size_bytes

    def _parsed(self, session: Session) -> _Parsed:
        known = self._configs.get(session.baseline_id)
        if known is None:
            known = _Parsed(MiproConfig.parse(session.config), session_bytes(session))
            self._configs.put(session.baseline_id, known, size_bytes=known.size_bytes)
        return known

    def forget_prompts(self) -> None:
        """Read all lever versions anew: some of them were emptied, which is rare."""
        for candidate_id in [*self._levers]:
            self._levers.drop(candidate_id)

    async def prompt_of(self, candidate: Candidate) -> tuple[LeverVersion, LeverVersion]:
        """The candidate's instruction and demonstrations."""
        known = self._levers.get(candidate.candidate_id)
        if known is None:
            versions = await self._store.levers(candidate.session_id)
            found = {(version.lever, version.version): version for version in versions}
            known = (
                found[LeverName.INSTRUCTION, candidate.instruction_version],
                found[LeverName.DEMONSTRATIONS, candidate.demonstrations_version],
            )
            size_bytes = sum(_lever_bytes(version) for version in known)
            self._levers.put(candidate.candidate_id, known, size_bytes=size_bytes)
        return known


class Recent(Generic[T]):
    """A cache that drops the values not used for longest once it exceeds `largest_bytes`.

    The newest value stays whatever its size.
    """

    def __init__(self, largest_bytes: int) -> None:
        self._left_bytes = largest_bytes
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def get(self, key: str) -> T | None:
        """The value, which now counts as the one used last."""
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def put(self, key: str, value: T, *, size_bytes: int) -> None:
        """Keep the value in place of an earlier one with the key."""
        self.drop(key)
        self._values[key] = value, size_bytes
        self._left_bytes -= size_bytes
        while self._left_bytes < 0 and len(self._values) > 1:
            self.drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        """Forget the value, if there is one."""
        entry = self._values.pop(key, None)
        if entry is not None:
            self._left_bytes += entry[1]


def session_bytes(session: Session) -> int:
    """The approximate memory of a session, or of its parsed config."""
    return SESSION_BYTES + _json_bytes(session.config) + _json_bytes(session.metadata)


def _lever_bytes(version: LeverVersion) -> int:
    demonstrations = sum(
        DEMONSTRATION_BYTES + len(each.input) + len(each.output) for each in version.demonstrations
    )
    return LEVER_BYTES + len(version.text) + demonstrations


def _json_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(key) + ENTRY_BYTES + _json_bytes(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(map(_json_bytes, value), start=ENTRY_BYTES)
    return len(value) if isinstance(value, str) else 0
