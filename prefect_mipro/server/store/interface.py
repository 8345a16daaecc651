"""What the services ask of a store. Each method is one transaction.

Contract, held by one conformance suite for every store:

* Facts are inserted, counters are added to in the same transaction, beliefs are never stored.
* Every insert that may race has a unique key; the loser gets `Conflict`, or the row that won
  where the docstring says so.
* Every change of a session appends an event; `Session.version` is the `seq` of the last one.
* Unknown ids raise `SessionNotFound` or `CandidateNotFound`; a database that refuses or is out
  of reach raises `StoreFailed` and leaves nothing half-written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import (
    Candidate,
    Duel,
    DuelObservation,
    DuelState,
    RewardBlock,
    Statistics,
)
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.exports import Part
from prefect_mipro.models.levers import LeverVersion
from prefect_mipro.models.rollouts import (
    CallFailure,
    ExampleTrace,
    Reward,
    Rollout,
    SeedEval,
    Trace,
)
from prefect_mipro.models.sensors import SensorFrame
from prefect_mipro.models.sessions import Event, Session, SessionState
from prefect_mipro.server.store.access import Access
from prefect_mipro.server.store.records import (
    Attached,
    CallRecord,
    Failures,
    Overview,
    Page,
    SeedEvalFilter,
    SessionFilter,
    Standing,
    Withdrawal,
)
from prefect_mipro.server.store.upkeep import Upkeep


class Store(Access, Upkeep, Protocol):
    """Sessions, levers, candidates, rollouts, traces, rewards, frames, duels, events."""

    @property
    def shared(self) -> bool:
        """Whether other servers may have it open, too."""
        ...

    async def others_version(self) -> int:
        """A number that changes whenever another program changes a database that is not shared."""
        ...

    def watch(self, changed: Callable[[str], None]) -> None:
        """Have it called with the id of each session that is changed here, when it has been.

        Pins and recorded calls are no changes in this sense.
        """
        ...

    # sessions

    async def create_session(
        self, session: Session, levers: Sequence[LeverVersion], baseline: Candidate
    ) -> tuple[Session, bool]:
        """Insert all of them; an existing session with the id is returned with `False`.

        Raises Conflict if that is another workspace's.
        """
        ...

    async def session(self, session_id: str) -> Session: ...

    async def standing(self, session_id: str) -> Standing:
        """All of it as of one moment."""
        ...

    async def sessions(
        self, wanted: SessionFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Session]:
        """Newest first. A cursor that is not one of ours raises InputInvalid."""
        ...

    async def set_state(
        self,
        session_id: str,
        state: SessionState,
        *,
        at: datetime,
        stop_reason: str | None = None,
    ) -> Session:
        """Change the state.

        The present state again is no change; after a final one SessionEnded.
        """
        ...

    async def set_champion(
        self, session_id: str, candidate_id: str, *, at: datetime, reason: str
    ) -> Session:
        """Make a candidate the champion, in any state of the session.

        One that was retired is in play again. A running duel is abandoned. Raises Conflict where
        the candidate's prompt was forgotten.
        """
        ...

    async def begin_epoch(self, session_id: str, *, at: datetime, reason: str) -> Session:
        """Begin a new epoch: later rewards go to blocks of their own. A running duel is abandoned.

        A reward belongs to the epoch in which its rollout was pinned.
        """
        ...

    async def record_proposal_round(
        self,
        session_id: str,
        *,
        rewards: int,
        asked: bool,
        error: str | None,
        warning: str | None,
        usage: Usage,
        at: datetime,
    ) -> Session:
        """Count a round that looked at `rewards` rewards, and the tokens of its proposer model.

        A round that `asked` the model counts an error as one more failure in a row, or sets the
        count to zero; a round that did not ask leaves count and error as they are. `warning` says
        what the round could not learn from.
        """
        ...

    async def overview(self) -> Overview:
        """All sessions together, by state. Reads each session's row, so not for every call."""
        ...

    # levers and candidates

    async def levers(self, session_id: str) -> tuple[LeverVersion, ...]:
        """All versions, by lever and number.

        One is retired since its last active candidate was; one without candidates is not.
        """
        ...

    async def candidates(self, session_id: str) -> tuple[Candidate, ...]:
        """Those in play, the 100 retired last and the newest, with their statistics, by number."""
        ...

    async def totals(self, session_id: str) -> Statistics:
        """The statistics of all its candidates together."""
        ...

    async def candidate(self, candidate_id: str) -> Candidate: ...

    async def add_candidates(
        self,
        session_id: str,
        levers: Sequence[LeverVersion],
        candidates: Sequence[Candidate],
    ) -> None:
        """Insert new lever versions and candidates; a number that was raced raises Conflict."""

    async def decide_review(
        self,
        session_id: str,
        decided: LeverVersion,
        *,
        apart: LeverVersion | None,
        candidate: Candidate | None,
    ) -> None:
        """Store the decision on a demonstration set that waits; else raise Conflict.

        `apart` is what an approval left out, a set that is declined; it and the candidate get the
        next numbers.
        """
        ...

    async def retire(
        self,
        session_id: str,
        candidate_ids: Sequence[str],
        *,
        at: datetime,
        reason: str,
        ends_duel: bool = False,
    ) -> None:
        """Take candidates out of play.

        A running duel with one of them goes on, and may still be won, unless this `ends_duel`.
        """
        ...

    async def withdraw(
        self, session_id: str, candidate_ids: Collection[str], *, at: datetime, reason: str
    ) -> Withdrawal:
        """Take candidates out of play, and out of the rollouts that are pinned to them.

        A running duel with one of them is abandoned. In the place of the champion comes the
        candidate in play that won a duel last, else the baseline. Raises Conflict for the baseline.
        """
        ...

    async def successor(self, session_id: str, leaving: Collection[str]) -> str:
        """Which candidate would be the champion if these were withdrawn with the present one."""
        ...

    # rollouts

    async def rollout(self, session_id: str, rollout_id: str) -> Rollout | None: ...

    async def pin(self, rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
        """Insert all of them in their order; in the place of one that was pinned before, that one.

        Inserting counts it for its candidate and its duel, remembers the session's serving
        candidate, and attaches a reward that waits for it. One that is no evidence counts as
        `unapplied_rollouts` of its candidate, and for no duel.
        """
        ...

    async def note_applied(self, session_id: str, rollout_id: str, *, applied: bool) -> None:
        """Learn whether the candidate's prompt was in a call of the rollout; once is enough.

        A rollout of which no call had it is no evidence: what its reward has added to statistics,
        duel, blocks and example is taken back, and added once a call with the prompt is known.
        """
        ...

    async def record_calls(self, calls: Sequence[CallRecord]) -> None:
        """Insert all traces and frames, and add the calls to the statistics of their candidates.

        What they say of `applied` is noted, as by `note_applied`. A call with a failure marks its
        rollout, unless that has its reward or was given up. After a refused call no reward is
        awaited; in a duel the rollout counts as 0. A reward above 0 takes other failures back.
        It gives way to what else is to be written.
        """
        ...

    async def fall_back(
        self,
        session_id: str,
        rollout_id: str,
        failure: CallFailure,
        candidate_id: str,
        *,
        at: datetime,
    ) -> Rollout:
        """Give the rollout of a failed call to the candidate that answers in its place.

        Its reward is counted for that candidate, but is no evidence; in a duel it counts as a
        failure of the one that was chosen. A rollout that failed before, has its reward or was
        given up stays as it is. Returns the rollout as it is then. Raises RolloutNotFound.
        """
        ...

    async def failures(self, session_id: str) -> Failures:
        """How many rollouts have failed because of their prompts, and the newest ones."""
        ...

    async def post_trace(self, call: CallRecord) -> Trace:
        """The same for a call that was made elsewhere, unless a trace has its id already.

        Returns the trace that has the id: this one, or the earlier one as it stands.
        """
        ...

    # turns

    async def take_turn(
        self, session_id: str, *, holder: str, at: datetime, until: datetime
    ) -> bool:
        """Take or renew the turn to propose for a session; whether it is the holder's now.

        It is free when nobody has it, when its time is up, and when that is so far off that a clock
        must have been set back since. `at` is the present.
        """
        ...

    async def give_turn_back(self, session_id: str, *, holder: str) -> None:
        """End the holder's turn, if it still has it."""
        ...

    # rewards

    async def add_reward(self, reward: Reward, *, request_key: str | None = None) -> Attached:
        """Count a reward once.

        With a rollout id: the same score again is a duplicate, another one RewardConflict; a
        rollout that is not known waits, unless the reward names a candidate, which then pins it;
        a candidate that is not the rollout's own is a RewardConflict. Without: it goes to the
        newest unrewarded rollout of its correlation id (of the session when it has none), and of
        its candidate where it names one, or RolloutNotFound. A `request_key` seen before returns
        what it did then.

        Attaching adds to the statistics of the candidate and of the duel, to the reward blocks, to
        the rewards of the example, and inserts a sensor frame of kind `reward`. The reward's
        example id stands in where the rollout has none. The reward of a rollout that is no evidence
        is kept, and added to nothing.
        """
        ...

    async def reward_blocks(self, session_id: str) -> tuple[RewardBlock, ...]:
        """All attached rewards by stretch of traffic and candidate, in order.

        At most 32 stretches for each epoch, however long the session is: two become one when there
        would be more.
        """
        ...

    async def example_rewards(self, session_id: str, example_id: str) -> tuple[int, float]:
        """How often an example was rewarded, and the sum of its deviations.

        A deviation is a reward less the mean of its candidate before it. (0, 0.0) when unknown.
        """
        ...

    async def give_up(
        self, session_id: str, *, after_rewards: int, pinned_before: datetime, at: datetime
    ) -> int:
        """Mark overdue rollouts missing, oldest first, and return how many.

        One is overdue when `after_rewards` rollouts that were pinned later have their rewards, or
        when it was pinned before `pinned_before`. Its reward still counts when it comes, but not
        for a duel. One event tells of all.
        """
        ...

    async def watermark(self, session_id: str) -> int:
        """Up to which position, in the order of the pins, every rollout is rewarded or missing."""
        ...

    # what was seen

    async def example_traces(
        self, session_id: str, *, candidate_id: str | None = None, limit: int
    ) -> tuple[ExampleTrace, ...]:
        """The newest rewarded rollouts that made exactly one answered call with text.

        With `candidate_id` those of that candidate.
        """
        ...

    async def frames(self, session_id: str, *, limit: int) -> tuple[SensorFrame, ...]:
        """The newest frames, newest first."""
        ...

    async def last_unapplied(self, session_id: str) -> str | None:
        """The reason of the newest call whose candidate could not be put in, if there is one."""
        ...

    async def seed_evals(
        self, wanted: SeedEvalFilter, *, limit: int, cursor: str | None = None
    ) -> Page[SeedEval]:
        """By session, newest first.

        The seed is the example's id where that is a whole number; a reward from 0.5 on is a
        success; the split is left to those who know the pools.
        """
        ...

    async def events(self, session_id: str, *, since: int, limit: int) -> tuple[Event, ...]:
        """Events with `seq` greater than `since`, oldest first."""
        ...

    async def add_event(
        self,
        session_id: str,
        event_type: str,
        message: str,
        *,
        data: JsonObject,
        at: datetime,
    ) -> None: ...

    # duels

    async def duel(self, session_id: str) -> Duel | None:
        """The newest duel."""
        ...

    async def open_duel(self, duel: Duel) -> None:
        """Insert it; Conflict when its number is taken."""
        ...

    async def duel_observations(
        self, session_id: str, number: int, *, impute: float | None = None
    ) -> tuple[DuelObservation, ...]:
        """Its settled rollouts in the order of the pins, up to the session's watermark.

        One that was given up, even if its reward came later, is left out, or has the scaled reward
        `impute`.
        """
        ...

    async def awaited_in_duel(self, session_id: str, number: int) -> int:
        """How many of its rollouts lie beyond the watermark, and so are no observations yet."""
        ...

    async def close_duel(
        self,
        session_id: str,
        number: int,
        state: DuelState,
        *,
        at: datetime,
        reason: str,
    ) -> None:
        """End a running duel; won, its challenger becomes champion. A duel that has ended stays."""
        ...

    # a session as a whole

    async def part(
        self, session: Session, part: Part, *, limit: int, cursor: str | None = None
    ) -> Page[JsonObject]:
        """A page of a part's rows as plain JSON, without the session's secret, by their key.

        Rollouts and traces are those of the rollouts that `session` counts: later ones may run with
        candidates that were not listed yet. A trace has its sensor frame under `frame`. A page may
        have fewer rows than `limit`, or none, and another one after it.
        """
        ...

    async def restore(
        self,
        session_id: str,
        part: Part,
        rows: Sequence[JsonObject],
        *,
        workspace: str,
        secret: str,
        digest_key: str,
        at: datetime,
    ) -> None:
        """Insert rows that `part` told, all parts in their order; rows that are there stay.

        Until the end its version is 0. It is paused, unless it had ended. Raises Conflict where a
        session with its id was here before, or at the end where rows lack; InputInvalid for what is
        no row.
        """
        ...

    async def close(self) -> None: ...
