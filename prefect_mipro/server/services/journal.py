"""The journal: what calls leave behind, written for many calls at once.

A call is answered when its pin is written, which joins the next transaction. Its recording is
in the store `DELAY_SECONDS` later at most, plus the time of one transaction; until then it is in
memory only. A store that refuses is asked again until it takes what is here. There is room for so
much and for so many calls, and one that comes when it is used up is refused before anything is
done for it.

A model may be asked while the pin of its call is being written, as long as the store is known to
take pins. After a start, and after a write that failed or is slow, each call waits for its pin
first: a call that cannot be pinned must not cost money.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prefect_mipro.errors import (
    MiproError,
    Overloaded,
    RolloutNotFound,
    SessionNotFound,
    StoreFailed,
)
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.rollouts import Rollout
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store

DELAY_SECONDS = 0.05

# So many recordings are written in one transaction. More would keep pins waiting.
BATCH = 64

# A commit costs as much as ten pins. It waits for so many turns of the event loop, which are long
# when many calls come at once.
GATHERING_TURNS = 2

MOST_CALLS_IN_FLIGHT = 1_000
MOST_RECORDINGS = 10_000
MOST_BYTES = 64 * 2**20

RETRY_SECONDS = 0.5
RETRY_AFTER_SECONDS = 1.0

# How long the store must have refused nothing before models are asked beside the pins again.
TRUSTED_AFTER_SECONDS = 30.0
# A transaction of pins that takes longer may be about to fail: milliseconds are usual.
SLOW_PINS_SECONDS = 0.5
LONGEST_PINS_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What the journal has done. `lost` recordings were refused by the store for good.

    They were `written` in so many `batches`, besides `failures` in which the store took nothing.
    `refused` calls came while there was no room, or while no pin could be written.
    """

    written: int = 0
    batches: int = 0
    failures: int = 0
    lost: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Recording:
    call: CallRecord
    size_bytes: int


class Journal:
    """The pins and recordings of all sessions, on their way to the store."""

    def __init__(
        self,
        store: Store,
        *,
        delay_seconds: float = DELAY_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        most_recordings: int = MOST_RECORDINGS,
        most_bytes: int = MOST_BYTES,
        most_calls_in_flight: int = MOST_CALLS_IN_FLIGHT,
        trusted_after_seconds: float = TRUSTED_AFTER_SECONDS,
        slow_pins_seconds: float = SLOW_PINS_SECONDS,
        longest_pins_seconds: float = LONGEST_PINS_SECONDS,
    ) -> None:
        self._store = store
        self._delay_seconds = delay_seconds
        self._retry_seconds = retry_seconds
        self._most_recordings = most_recordings
        self._most_bytes = most_bytes
        self.most_calls_in_flight = most_calls_in_flight
        self.calls_in_flight = 0
        self._trusted_after_seconds = trusted_after_seconds
        self._slow_pins_seconds = slow_pins_seconds
        self._longest_pins_seconds = longest_pins_seconds
        self._pins: list[tuple[Rollout, asyncio.Future[Rollout]]] = []
        self._pinning: asyncio.Task[None] | None = None
        self._pinning_since: float | None = None
        # Why the store took the last pins not; None once it takes some.
        self._refusal: StoreFailed | None = None
        self._trusted = False
        self._doubted_until = float("-inf")
        self._recordings: deque[_Recording] = deque()
        self._size_bytes = 0
        self._due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._accepted = 0
        self._attempted = asyncio.Event()
        self._refused = False
        self._closing = asyncio.Event()
        self.counts = Counts()

    @property
    def waiting(self) -> int:
        """Recordings that are not in the store yet."""
        return len(self._recordings)

    @property
    def capacity(self) -> int:
        """How many may wait. Large ones fill the journal sooner."""
        return self._most_recordings

    def require_room(self) -> None:
        """Raise Overloaded while too many calls are under way, or the store is too far behind."""
        if self.calls_in_flight >= self.most_calls_in_flight:
            self.counts.refused += 1
            raise Overloaded(
                f"{self.calls_in_flight} calls are under way, and this server takes no more at "
                "once; repeat the call later, or start the server with a larger "
                "--max-calls-in-flight",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if len(self._recordings) >= self._most_recordings or self._size_bytes >= self._most_bytes:
            self.counts.refused += 1
            raise Overloaded(
                f"the database is {len(self._recordings)} calls behind; repeat the call later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def require_pins(self) -> None:
        """Raise StoreFailed while a pin would wait long, earlier where the last pins failed."""
        seconds = self.pinning_seconds
        if self._refusal is not None and seconds > self._slow_pins_seconds:
            self.counts.refused += 1
            raise _copy(self._refusal)
        if seconds > self._longest_pins_seconds:
            self.counts.refused += 1
            raise StoreFailed(
                f"the database has been busy for more than {self._longest_pins_seconds:g} seconds; "
                "look whether its disk hangs or another program locks it, then repeat",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    @property
    def pinning_seconds(self) -> float:
        """How long the present transaction of pins has taken so far."""
        if self._pinning_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._pinning_since

    @property
    def pins_first(self) -> bool:
        """Whether a call must have its pin before its model is asked."""
        return not self._trusted or self.pinning_seconds > self._slow_pins_seconds

    def begin_call(self) -> None:
        """Count a call as under way, until `end_call`. Raises Overloaded without room for it."""
        self.require_room()
        self.calls_in_flight += 1

    def end_call(self) -> None:
        """Count a call as over."""
        self.calls_in_flight -= 1

    def pin(self, rollout: Rollout) -> asyncio.Future[Rollout]:
        """Pin a rollout with the next transaction. Returns the rollout as it was pinned first."""
        pinned: asyncio.Future[Rollout] = asyncio.get_running_loop().create_future()
        self._pins.append((rollout, pinned))
        if self._pinning is None:
            self._pinning = asyncio.create_task(self._pin_all())
        return pinned

    def record(self, call: CallRecord, *, size_bytes: int) -> None:
        """Queue a recording for the next batch."""
        self._accepted += 1
        self._recordings.append(_Recording(call, size_bytes))
        self._size_bytes += size_bytes
        if len(self._recordings) >= BATCH:
            self._write_now()
        elif self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(self._delay_seconds, self._write_now)

    async def flush(self) -> None:
        """Write what is queued now, before it is read. Gives up once the store refuses."""
        last = self._accepted
        while self._accepted - len(self._recordings) < last:
            self._write_now()
            await self._attempted.wait()
            if self._refused:
                return

    async def close(self) -> None:
        """Write all that is queued. What the store refuses now is lost, and logged as lost."""
        self._closing.set()
        while self._pinning is not None:
            await self._pinning
        while self._recordings:
            self._write_now()
            await self._attempted.wait()
        if self._due is not None:
            self._due.cancel()

    # pins

    async def _pin_all(self) -> None:
        """Run one transaction after the other, each with all pins requested meanwhile."""
        try:
            while self._pins:
                await self._gather()
                pins, self._pins = self._pins, []
                await self._pin_together(pins)
        finally:
            self._pinning = None

    async def _gather(self) -> None:
        """Let calls that have arrived join in: a turn of an idle event loop takes no time."""
        for _ in range(min(self.calls_in_flight - 1, GATHERING_TURNS)):
            await asyncio.sleep(0)

    async def _pin_together(self, pins: Sequence[tuple[Rollout, asyncio.Future[Rollout]]]) -> None:
        self._pinning_since = asyncio.get_running_loop().time()
        try:
            pinned = await self._store.pin([rollout for rollout, _ in pins])
        except MiproError as error:
            if isinstance(error, StoreFailed):
                error = self._refuse_pins(error)
            # One that cannot be pinned is no reason for the others to fail.
            elif len(pins) > 1:
                for pin in pins:
                    await self._pin_together([pin])
                return
            for _, future in pins:
                if not future.done():
                    future.set_exception(_copy(error))
            return
        finally:
            self._pinning_since = None
        self._trust()
        for (_, future), rollout in zip(pins, pinned, strict=True):
            if not future.done():
                future.set_result(rollout)

    def _refuse_pins(self, error: StoreFailed) -> StoreFailed:
        if self._refusal is None:
            log.warning("pins_refused", extra={"reason": error.message})
        self._refusal = StoreFailed(error.message, retry_after_seconds=RETRY_AFTER_SECONDS)
        self._doubt()
        return self._refusal

    def _doubt(self) -> None:
        """Note that the store has refused something."""
        self._trusted = False
        self._doubted_until = asyncio.get_running_loop().time() + self._trusted_after_seconds

    def _trust(self) -> None:
        """Note that the store has taken pins."""
        if self._refusal is not None:
            self._refusal = None
            log.info("pins_taken_again")
        self._trusted = asyncio.get_running_loop().time() >= self._doubted_until

    # recordings

    def _write_now(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(len(self._recordings)))

    async def _write(self, number: int) -> None:
        """Write the oldest recordings, and whatever has filled a batch meanwhile."""
        try:
            while number > 0 or len(self._recordings) >= BATCH:
                batch = [self._recordings[i] for i in range(min(BATCH, len(self._recordings)))]
                await self._write_batch([recording.call for recording in batch])
                for recording in batch:
                    self._recordings.popleft()
                    self._size_bytes -= recording.size_bytes
                number -= len(batch)
                self._tell(refused=False)
        finally:
            self._writing = None
            if self._recordings and self._due is None:
                loop = asyncio.get_running_loop()
                self._due = loop.call_later(self._delay_seconds, self._write_now)

    async def _write_batch(self, calls: Sequence[CallRecord]) -> None:
        """Write one batch. Returns when its recordings are stored, or lost."""
        try:
            await self._until_taken(partial(self._store.record_calls, calls), calls)
        except MiproError:
            # One that cannot be written is no reason to lose the others. And all of them are there
            # if an earlier try was refused only after it was committed: each is written once.
            for call in calls:
                await self._write_alone(call)

    async def _write_alone(self, call: CallRecord) -> None:
        try:
            await self._until_taken(partial(self._store.post_trace, call), [call])
        except MiproError as error:
            self._lose([call], error)

    async def _until_taken(
        self, write: Callable[[], Awaitable[object]], calls: Sequence[CallRecord]
    ) -> None:
        """Retry a batch while the store takes nothing. Raises the store's other errors."""
        while True:
            try:
                await write()
            except StoreFailed as error:
                self.counts.failures += 1
                self._doubt()
                log.warning(
                    "recordings_refused",
                    extra={"waiting": len(self._recordings), "reason": error.message},
                )
                if self._closing.is_set():
                    self._lose(calls, error)
                    return
                self._tell(refused=True)
                await self._pause()
            else:
                self.counts.written += len(calls)
                self.counts.batches += 1
                return

    def _tell(self, *, refused: bool) -> None:
        """Wake the callers that wait for the next attempt."""
        self._refused = refused
        self._attempted.set()
        self._attempted = asyncio.Event()

    async def _pause(self) -> None:
        """Wait before another try; not when closing."""
        try:
            async with asyncio.timeout(self._retry_seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    def _lose(self, calls: Sequence[CallRecord], error: MiproError) -> None:
        if isinstance(error, SessionNotFound):
            # It was deleted meanwhile, and they would have been deleted with it.
            log.info("recordings_of_deleted_session", extra={"recordings": len(calls)})
            return
        if isinstance(error, RolloutNotFound):
            # It was forgotten at a request while they were under way.
            log.info("recordings_of_removed_rollout", extra={"recordings": len(calls)})
            return
        self.counts.lost += len(calls)
        fields: JsonObject = {"lost": len(calls), "error": type(error).__name__}
        if isinstance(error, StoreFailed):  # others quote what could not be stored
            fields["reason"] = error.message
        log.error("recordings_lost", extra=fields)


def _copy(error: MiproError) -> MiproError:
    """The same error for another caller, who may add to it."""
    return type(error)(error.message, retry_after_seconds=error.retry_after_seconds)
