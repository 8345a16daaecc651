"""Sessions and prompts in memory, so that a call does not wait for a query.

`PromptCache` holds what never changes once it is stored, `SessionCache` the sessions themselves.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import SessionNotFound, StoreFailed
from prefect_mipro.models.candidates import Candidate, Duel, DuelState, Statistics
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.levers import LeverName, LeverVersion
from prefect_mipro.models.rollouts import Rollout
from prefect_mipro.models.sessions import Session
from prefect_mipro.optimizer.stopping import has_budget
from prefect_mipro.server.store.records import Standing
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

OLDEST_SECONDS = 1.0
REMEMBERED_PINS = 16_384
LARGEST_SESSIONS_BYTES = 64 * 2**20

LONG_AGO = float("-inf")


class _Parsed(NamedTuple):
    config: MiproConfig
    size_bytes: int


class PromptCache:
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


@dataclass(frozen=True)
class Reserved:
    """The most that one call under way, or all of them together, may use."""

    tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: Reserved) -> Reserved:
        return Reserved(self.tokens + other.tokens, self.cost_usd + other.cost_usd)

    def __sub__(self, other: Reserved) -> Reserved:
        return Reserved(self.tokens - other.tokens, self.cost_usd - other.cost_usd)


NOTHING = Reserved()


class Pinning(NamedTuple):
    """A pin under way: the candidate that was chosen, and the rollout as it will be pinned.

    `shares` are those of the traffic that the candidates got then.
    """

    candidate_id: str
    rollout: asyncio.Future[Rollout]
    shares: Mapping[str, float]


class _RememberedPin(NamedTuple):
    """The candidate of a rollout, and how many rollouts its session had lost by then."""

    candidate_id: str
    removed_rollouts: int


@dataclass(eq=False)
class LiveSession:
    """A session in memory. Its counters only grow: of two figures the larger is the newer.

    `serving_*` are ahead of the store by the choices whose pins are under way. `unapplied_told` is
    the number of `unapplied_calls` that the log has told of. `shares` are the candidates' shares of
    the traffic at the newest draw.
    """

    session: Session
    config: MiproConfig
    read_at: float
    duel: Duel | None = None
    active_candidates: int = 0
    withdrawn_ids: frozenset[str] = frozenset()
    rollouts: int = 0
    rewards: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unapplied_calls: int = 0
    unapplied_told: int = 0
    failures: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    serving_candidate_id: str | None = None
    serving_rollouts: int = 0
    learned_at: float = LONG_AGO
    rewards_at_give_up: int = 0
    choosing: dict[str, asyncio.Event] = field(default_factory=dict)
    pinning: dict[str, Pinning] = field(default_factory=dict)
    reserved: Reserved = NOTHING

    def __post_init__(self) -> None:
        config = self.config
        self.has_budget = has_budget(config.prompt_learning)
        self._priced = config.policy.priced or bool(config.prompt_learning.prices)

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def champion_id(self) -> str:
        return self.session.champion_id

    @property
    def epoch(self) -> int:
        return self.session.epoch

    @property
    def proposal_number(self) -> int:
        return self.session.proposal_number

    @property
    def running_duel(self) -> Duel | None:
        """The duel that rollouts may belong to."""
        running = self.duel is not None and self.duel.state is DuelState.RUNNING
        return self.duel if running else None

    def as_session(self) -> Session:
        """The session with the counters as they are now."""
        counted = {
            "rollouts": self.rollouts,
            "rewards": self.rewards,
            "serving_candidate_id": self.serving_candidate_id,
            "serving_rollouts": self.serving_rollouts,
        }
        return self.session.model_copy(update=counted)

    def learn(self, standing: Standing, *, began_at: float) -> None:
        """Take over what was read since `began_at`, unless newer facts are known."""
        if began_at < self.learned_at:
            return
        session, totals = standing.session, standing.totals
        if self.learned_at == LONG_AGO:  # what came before was told before
            self.unapplied_told = totals.unapplied_calls
        self.learned_at = began_at
        self.session = session
        self.duel = standing.duel
        self.active_candidates = standing.active_candidates
        self.withdrawn_ids = standing.withdrawn_ids
        self.rollouts = max(self.rollouts, session.rollouts)
        self.rewards = max(self.rewards, session.rewards)
        self.prompt_tokens = max(self.prompt_tokens, totals.prompt_tokens)
        self.completion_tokens = max(self.completion_tokens, totals.completion_tokens)
        self.cost_usd = max(self.cost_usd, totals.cost_usd_sum)
        self.unapplied_calls = max(self.unapplied_calls, totals.unapplied_calls)
        self.failures = totals.failures
        if not self.choosing and not self.pinning:
            self.serving_candidate_id = session.serving_candidate_id
            self.serving_rollouts = session.serving_rollouts

    def serve(self, candidate_id: str) -> None:
        """Count a rollout that is served with the candidate."""
        again = candidate_id == self.serving_candidate_id
        self.serving_candidate_id = candidate_id
        self.serving_rollouts = self.serving_rollouts + 1 if again else 1

    def cost_usd_of(
        self, model: str | None, usage: Usage, *, asked_model: str | None
    ) -> float | None:
        """What a call cost, where its price is known."""
        if not self._priced:
            return None
        return self.config.call_cost_usd(model, usage, asked_model=asked_model)

    def spend(self, usage: Usage, cost_usd: float | None) -> None:
        """Add the tokens and the cost of a call."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cost_usd += cost_usd or 0.0

    def count_unapplied(self) -> bool:
        """Count a call without its candidate's prompt; whether to tell of it: at 1, 10, 100..."""
        self.unapplied_calls += 1
        if self.unapplied_told and len(str(self.unapplied_calls)) == len(str(self.unapplied_told)):
            return False
        self.unapplied_told = self.unapplied_calls
        return True

    @property
    def unpinned(self) -> int:
        """Rollouts that are being chosen for or pinned, and so not counted yet."""
        return len(self.choosing) + len(self.pinning)

    @property
    def totals(self) -> Statistics:
        """What has been spent."""
        return Statistics(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost_usd_sum=self.cost_usd,
        )


class SessionCache:
    """A cache of the sessions served last and of the newest pins."""

    def __init__(
        self,
        store: Store,
        prompts: PromptCache,
        *,
        oldest_seconds: float = OLDEST_SECONDS,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._oldest_seconds = oldest_seconds
        self._timer = timer
        self._held: Recent[LiveSession] = Recent(LARGEST_SESSIONS_BYTES)
        self._reading: dict[str, asyncio.Task[LiveSession]] = {}
        self._checking: asyncio.Task[None] | None = None
        self._checked_at = LONG_AGO
        self._others_version: int | None = None
        self._pins: OrderedDict[tuple[str, str], _RememberedPin] = OrderedDict()
        store.watch(self.forget)

    async def of(self, session_id: str) -> LiveSession:
        """The session, at most `OLDEST_SECONDS` out of date. Raises SessionNotFound."""
        if not self._store.shared:
            await self._notice_others()
        held = self._held.get(session_id)
        if held is not None:
            age_seconds = self._age_seconds(held)
            if age_seconds < self._oldest_seconds / 2:
                return held
            if age_seconds < self._oldest_seconds:
                if self._store.shared:
                    self._begin_to_read(session_id)
                return held
        return await asyncio.shield(self._begin_to_read(session_id))

    def held(self, session_id: str) -> Session | None:
        """The session if it is in memory and no older than what `of` returns."""
        held = self._held.get(session_id)
        if held is None or self._age_seconds(held) >= self._oldest_seconds:
            return None
        return held.session

    def forget(self, session_id: str) -> None:
        """Have the next call read the session again: this process has changed it."""
        self._reading.pop(session_id, None)
        held = self._held.get(session_id)
        if held is not None:
            held.read_at = LONG_AGO

    def pinned(self, session: Session, rollout_id: str) -> str | None:
        """The candidate of a rollout that was pinned not long ago.

        Servers that share the database remove rollouts without telling each other: once the session
        has lost any, a pin from before is not trusted.
        """
        pin = self._pins.get((session.baseline_id, rollout_id))
        if pin is None:
            return None
        if self._store.shared and pin.removed_rollouts != session.removed_rollouts:
            return None
        return pin.candidate_id

    def remember_pin(self, session: Session, rollout_id: str, candidate_id: str) -> None:
        """Keep a rollout's candidate for its next calls."""
        pin = _RememberedPin(candidate_id, session.removed_rollouts)
        self._pins[(session.baseline_id, rollout_id)] = pin
        if len(self._pins) > REMEMBERED_PINS:
            self._pins.popitem(last=False)

    def forget_pins(self, baseline_id: str, rollout_ids: Iterable[str]) -> None:
        """Forget the pins of rollouts that were removed."""
        for rollout_id in rollout_ids:
            self._pins.pop((baseline_id, rollout_id), None)

    async def close(self) -> None:
        """Cancel the queries under way."""
        tasks: list[asyncio.Task[Any]] = [*self._reading.values()]
        if self._checking is not None:
            tasks.append(self._checking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _age_seconds(self, held: LiveSession) -> float:
        """The age of the session in memory."""
        if held.read_at == LONG_AGO:
            return math.inf
        return self._timer() - max(held.read_at, self._checked_at)

    async def _notice_others(self) -> None:
        """Have all sessions read again if another program has changed the database."""
        age_seconds = self._timer() - self._checked_at
        if age_seconds < self._oldest_seconds / 2:
            return
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
        if age_seconds >= self._oldest_seconds:
            await asyncio.shield(self._checking)

    async def _check(self) -> None:
        began_at = self._timer()
        try:
            version = await self._store.others_version()
        except StoreFailed:
            version = None  # anything may have changed
        finally:
            self._checking = None
        if version is None or version != self._others_version:
            self._others_version = version
            for session_id in [*self._held, *self._reading]:
                self.forget(session_id)
        self._checked_at = began_at

    def _begin_to_read(self, session_id: str) -> asyncio.Task[LiveSession]:
        reading = self._reading.get(session_id)
        if reading is None:
            reading = asyncio.create_task(self._read(session_id))
            self._reading[session_id] = reading
            reading.add_done_callback(lambda task: self._end_to_read(session_id, task))
        return reading

    def _end_to_read(self, session_id: str, task: asyncio.Task[LiveSession]) -> None:
        if self._reading.get(session_id) is task:
            del self._reading[session_id]
        if not task.cancelled():
            # Who waits for it is told; who does not finds out later.
            task.exception()

    async def _read(self, session_id: str) -> LiveSession:
        read_at = self._timer()
        try:
            standing = await self._store.standing(session_id)
        except SessionNotFound:
            self._held.drop(session_id)
            raise
        held = self._held.get(session_id)
        # Such an answer is for those already waiting; a later call reads again.
        changed_meanwhile = self._reading.get(session_id) is not asyncio.current_task()
        if held is not None and held.session.baseline_id != standing.session.baseline_id:
            # A session that was deleted leaves its id to another one.
            if changed_meanwhile:
                return await self.of(session_id)
            held = None
        if held is None:
            config = self._prompts.config(standing.session)
            held = LiveSession(standing.session, config, LONG_AGO)
            size_bytes = self._prompts.size_bytes(standing.session)
            self._held.put(session_id, held, size_bytes=size_bytes)
        held.learn(standing, began_at=read_at)
        if not changed_meanwhile:
            held.read_at = read_at
        return held
