"""Proposals: the background rounds in which a session gets new lever versions.

Of the servers that share a database, one at a time proposes for a session.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import numpy as np

from prefect_mipro.errors import Conflict, MiproError
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import LeverVersion, ReviewState
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.optimizer import proposals
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.beliefs import Beliefs, generator
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.proposer import Proposer, Written
from prefect_mipro.server.services.rounds import Round, not_shown, nothing_seen
from prefect_mipro.server.services.session_cache import PromptCache
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.watch import Telemetry
from prefect_mipro.server.upstream.registry import Upstreams

TRACES_READ = 600

# The turn of a server that has died ends then; one that lives renews its own in time. Their clocks
# may differ by less than that. One that is set back frees the turns that it had taken.
TURN_SECONDS = 30.0
RENEWALS = 3
WAIT_SECONDS = 0.5

log = logging.getLogger(__name__)


class Proposals:
    """The proposal rounds of all sessions, one at a time for each."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        prompts: PromptCache,
        beliefs: Beliefs,
        journal: Journal,
        *,
        telemetry: Telemetry,
        clock: Clock,
        new_id: NewId,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._beliefs = beliefs
        self._journal = journal
        self._telemetry = telemetry
        self._proposer = Proposer(upstreams)
        self._turns = Turns(store, holder=new_id("server"), clock=clock, turn_seconds=turn_seconds)
        self._clock = clock
        self._new_id = new_id
        self._rounds: dict[str, asyncio.Task[None]] = {}
        self._pauses: Counter[str] = Counter()

    def consider(self, session_id: str) -> None:
        """Begin a round in the background if one is due and none is under way."""
        if session_id in self._rounds or self._pauses[session_id]:
            return
        task = asyncio.create_task(self._round(session_id))
        self._rounds[session_id] = task
        task.add_done_callback(lambda _: self._rounds.pop(session_id, None))

    @asynccontextmanager
    async def paused(self, session_id: str) -> AsyncIterator[None]:
        """No round for the session, here or on another server, until the block ends.

        A round that is under way ends first.
        """
        self._pauses[session_id] += 1
        try:
            if (under_way := self._rounds.get(session_id)) is not None:
                await asyncio.wait([under_way])
            async with self._turns.waited_for(session_id):
                yield
        finally:
            self._pauses[session_id] -= 1
            self._pauses += Counter()  # without those that are zero

    async def settle(self) -> None:
        """Wait until no round is under way."""
        await asyncio.gather(*self._rounds.values(), return_exceptions=True)

    async def close(self) -> None:
        """Give up the rounds under way. What they had not stored yet is proposed again later."""
        for task in self._rounds.values():
            task.cancel()
        await self.settle()

    async def waiting_for(self, session: Session, candidates: Sequence[Candidate]) -> str:
        """What the next round waits for, in words; empty when it is due."""
        return self._waits(session, active=sum(candidate.active for candidate in candidates))

    def _waits(self, session: Session, *, active: int) -> str:
        if session.state is not SessionState.RUNNING:
            return f"the session is {session.state}"
        since = session.proposed_at or session.created_at
        # A round that is still to come was one before the clock was set back.
        away = abs(self._clock() - since)
        return proposals.due(
            session,
            active=active,
            settings=self._prompts.config(session).mipro,
            seconds_since_round=away.total_seconds(),
        )

    async def _round(self, session_id: str) -> None:
        try:
            session = await self._store.session(session_id)
            # Nothing but the session is read for a reward after which even few candidates wait.
            if self._waits(session, active=1):
                return
            if await self.waiting_for(session, await self._store.candidates(session_id)):
                return
            async with self._turns.of(session_id) as own:
                if own:
                    await self._round_in_turn(session_id)
        except MiproError as error:
            # Serving goes on; the next reward asks again.
            log.warning(
                "proposal_round_failed",
                extra={"session_id": session_id, "error": type(error).__name__},
            )

    async def _round_in_turn(self, session_id: str) -> None:
        # Another server may have had the round that was due.
        session = await self._store.session(session_id)
        if await self.waiting_for(session, await self._store.candidates(session_id)):
            return
        with self._telemetry.proposal_round(session_id) as watched:
            written, warning = await self._propose(session)
            watched.finished(
                instructions=len(written.drafts),
                model_failed=written.error is not None,
                usage=written.usage,
            )
            await self._store.record_proposal_round(
                session_id,
                rewards=session.rewards,
                asked=written.asked,
                error=written.error,
                warning=warning,
                usage=written.usage,
                at=self._clock(),
            )

    async def _propose(self, session: Session) -> tuple[Written, str | None]:
        """Retire, then store what needs no model, then ask the model and store the rest.

        So a model that is slow, or fails, holds up nothing but its own instructions. Where it
        brings fewer than wanted, rewrites take their place. Also returns what the round could not
        learn from, and why.
        """
        config = self._prompts.config(session)
        rng = generator(config, session, session.proposal_number)
        seen = await self._retire(await self._look(session), rng)
        warning = await self._left_out(seen)
        wanted = seen.instructions_wanted
        asks, own = proposals.asks_model(session), config.proposer_is_policy
        share = proposals.model_share(wanted, own_model=own, round_number=session.proposal_number)
        drafts = seen.rewrites(wanted - share if asks else wanted, rng=rng)
        sets = await asyncio.to_thread(seen.sets, rng)
        new = seen.lever_versions(drafts, sets, at=self._clock())
        seen = await self._add(seen, new, reserved=share if asks else 0)
        left = min(wanted - len(drafts), seen.room.instructions)
        # A model of its own also writes what the rewrites could not bring.
        asked_for = min(left, share) if own else left
        written = await self._proposer.write(seen, asked_for if asks else 0, rng=rng)
        filling = seen.rewrites(left - len(written.drafts), beside=written.drafts, rng=rng)
        new = seen.lever_versions([*written.drafts, *filling], [], at=self._clock())
        await self._add(seen, new)
        return written, warning

    async def _look(self, session: Session) -> Round:
        await self._journal.flush()
        snapshot = await self._beliefs.fresh(session)
        levers = await self._store.levers(session.session_id)
        traces = await self._store.example_traces(session.session_id, limit=TRACES_READ)
        config = self._prompts.config(session)
        return await asyncio.to_thread(Round.of, config, snapshot, levers, traces)

    async def _left_out(self, seen: Round) -> str | None:
        """What a round could not learn from, where proposals were wanted; also logged."""
        room = seen.room
        session_id = seen.snapshot.session.session_id
        if not (seen.instructions_wanted or room.demonstration_sets):
            return None
        if not seen.traces:
            event = "proposal_round_saw_nothing"
            warning = nothing_seen(seen, await self._store.totals(session_id))
        else:
            event = "proposal_round_left_out"
            warning = await asyncio.to_thread(not_shown, seen) if room.demonstration_sets else ""
        if not warning:
            return None
        log.warning(event, extra={"session_id": session_id, "reason": warning})
        return warning

    async def _look_again(self, seen: Round) -> Round:
        """The round with the candidates and levers as they are now."""
        session = seen.snapshot.session
        self._beliefs.forget(session.session_id)
        return replace(
            seen,
            snapshot=await self._beliefs.fresh(session),
            levers=await self._store.levers(session.session_id),
        )

    async def _retire(self, seen: Round, rng: np.random.Generator) -> Round:
        session_id = seen.snapshot.session.session_id
        losers = seen.losers(await self._store.duel(session_id), rng)
        if not losers:
            return seen
        await self._store.retire(
            session_id,
            losers,
            at=self._clock(),
            reason="the best candidate has none of its levers with 99 % probability",
        )
        return await self._look_again(seen)

    async def _add(self, seen: Round, new: Sequence[LeverVersion], *, reserved: int = 0) -> Round:
        """Store the new versions and their candidates, with room left for `reserved` more."""
        most = self._prompts.config(seen.snapshot.session).mipro.online_proposer_max_candidates
        room = max(0, most - len(seen.snapshot.active) - reserved)
        waiting = [version for version in new if version.review_is(ReviewState.WAITING)]
        new = [*waiting, *[version for version in new if version not in waiting][:room]]
        if not new:
            return seen
        session_id = seen.snapshot.session.session_id
        candidates = seen.candidates_of(new, room=room, new_id=self._new_id, at=self._clock())
        try:
            await self._store.add_candidates(session_id, new, candidates)
        except Conflict:
            log.info("proposal_round_raced", extra={"session_id": session_id})
        else:
            self._telemetry.made(new)
        return await self._look_again(seen)


class Turns:
    """This server's turns to propose."""

    def __init__(
        self, store: Store, *, holder: str, clock: Clock, turn_seconds: float = TURN_SECONDS
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._turn_seconds = turn_seconds

    @asynccontextmanager
    async def of(self, session_id: str) -> AsyncIterator[bool]:
        """Take the turn for a session. Yields whether this server has it until the block ends."""
        if not self._store.shared:
            yield True
            return
        if not await self._take(session_id):
            yield False
            return
        renewing = asyncio.create_task(self._renew(session_id))
        try:
            yield True
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._store.give_turn_back(session_id, holder=self._holder)

    @asynccontextmanager
    async def waited_for(self, session_id: str) -> AsyncIterator[None]:
        """Wait for the turn for a session, and have it until the block ends."""
        while True:
            async with self.of(session_id) as own:
                if own:
                    yield
                    return
            await asyncio.sleep(WAIT_SECONDS)

    async def _renew(self, session_id: str) -> None:
        held = True
        while held:
            await asyncio.sleep(self._turn_seconds / RENEWALS)
            try:
                held = await self._take(session_id)
            except MiproError as error:
                log.warning("turn_not_renewed", extra={"reason": type(error).__name__})
        # What two servers propose at once cannot be mixed up: each version's number is given once.
        log.warning("turn_lost", extra={"session_id": session_id})

    async def _take(self, session_id: str) -> bool:
        now = self._clock()
        until = now + timedelta(seconds=self._turn_seconds)
        return await self._store.take_turn(session_id, holder=self._holder, at=now, until=until)
