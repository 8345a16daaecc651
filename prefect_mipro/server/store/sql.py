"""The store on SQLAlchemy: each method is one transaction of one function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Concatenate

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
from prefect_mipro.models.keys import Key
from prefect_mipro.models.levers import LeverName, LeverVersion
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
from prefect_mipro.server.store import (
    blocks,
    deletion,
    duels,
    failures,
    forgetting,
    keys,
    lineage,
    missing,
    observations,
    overview,
    parts,
    posted,
    restoring,
    retention,
    rewards,
    rollouts,
    sessions,
    space,
    sqlite,
    trimming,
    turns,
    workspaces,
)
from prefect_mipro.server.store.changes import read_session
from prefect_mipro.server.store.database import Database, P, T, Work
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
from prefect_mipro.server.store.upkeep import (
    CallTexts,
    ForgetOrder,
    Removed,
    Swept,
    Texts,
    TraceableReward,
)


class SqlStore:
    """`Store` of `interface.py`, which says what each method promises."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: list[Callable[[str], None]] = []

    @property
    def shared(self) -> bool:
        return self._database.shared

    async def others_version(self) -> int:
        # The connection that makes all of this store's changes does not count them.
        return await self._database.write(sqlite.others_version)

    def watch(self, changed: Callable[[str], None]) -> None:
        self._watchers.append(changed)

    async def create_session(
        self, session: Session, levers: Sequence[LeverVersion], baseline: Candidate
    ) -> tuple[Session, bool]:
        return await self._database.write(sessions.create, session, levers, baseline)

    async def session(self, session_id: str) -> Session:
        return await self._database.read(read_session, session_id)

    async def standing(self, session_id: str) -> Standing:
        return await self._database.read(sessions.standing, session_id)

    async def sessions(
        self, wanted: SessionFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Session]:
        return await self._database.read(sessions.page, wanted, limit=limit, cursor=cursor)

    async def set_state(
        self,
        session_id: str,
        state: SessionState,
        *,
        at: datetime,
        stop_reason: str | None = None,
    ) -> Session:
        return await self._change(
            session_id, sessions.set_state, state, at=at, stop_reason=stop_reason
        )

    async def set_champion(
        self, session_id: str, candidate_id: str, *, at: datetime, reason: str
    ) -> Session:
        return await self._change(
            session_id, sessions.set_champion, candidate_id, at=at, reason=reason
        )

    async def begin_epoch(self, session_id: str, *, at: datetime, reason: str) -> Session:
        return await self._change(session_id, sessions.begin_epoch, at=at, reason=reason)

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
        return await self._change(
            session_id,
            sessions.record_proposal_round,
            rewards=rewards,
            asked=asked,
            error=error,
            warning=warning,
            usage=usage,
            at=at,
        )

    async def overview(self) -> Overview:
        return await self._database.read(overview.read)

    async def levers(self, session_id: str) -> tuple[LeverVersion, ...]:
        return await self._database.read(lineage.levers_of, session_id)

    async def candidates(self, session_id: str) -> tuple[Candidate, ...]:
        return await self._database.read(lineage.candidates_of, session_id)

    async def totals(self, session_id: str) -> Statistics:
        return await self._database.read(lineage.totals, session_id)

    async def candidate(self, candidate_id: str) -> Candidate:
        return await self._database.read(lineage.read_candidate, candidate_id)

    async def add_candidates(
        self,
        session_id: str,
        levers: Sequence[LeverVersion],
        candidates: Sequence[Candidate],
    ) -> None:
        await self._change(session_id, lineage.add, levers, candidates)

    async def decide_review(
        self,
        session_id: str,
        decided: LeverVersion,
        *,
        apart: LeverVersion | None,
        candidate: Candidate | None,
    ) -> None:
        await self._change(session_id, lineage.decide, decided, apart=apart, candidate=candidate)

    async def retire(
        self,
        session_id: str,
        candidate_ids: Sequence[str],
        *,
        at: datetime,
        reason: str,
        ends_duel: bool = False,
    ) -> None:
        await self._change(
            session_id,
            lineage.retire,
            candidate_ids,
            at=at,
            reason=reason,
            ends_duel=ends_duel,
        )

    async def withdraw(
        self, session_id: str, candidate_ids: Collection[str], *, at: datetime, reason: str
    ) -> Withdrawal:
        return await self._change(session_id, lineage.withdraw, candidate_ids, at=at, reason=reason)

    async def successor(self, session_id: str, leaving: Collection[str]) -> str:
        return await self._database.read(duels.successor, session_id, leaving)

    async def rollout(self, session_id: str, rollout_id: str) -> Rollout | None:
        return await self._database.read(rollouts.find, session_id, rollout_id)

    async def pin(self, wanted: Sequence[Rollout]) -> tuple[Rollout, ...]:
        return await self._database.write(rollouts.pin, wanted)

    async def note_applied(self, session_id: str, rollout_id: str, *, applied: bool) -> None:
        await self._change(session_id, rollouts.note_applied, rollout_id, applied=applied)

    async def record_calls(self, calls: Sequence[CallRecord]) -> None:
        await self._database.write_last(rollouts.record_calls, calls)

    async def fall_back(
        self,
        session_id: str,
        rollout_id: str,
        failure: CallFailure,
        candidate_id: str,
        *,
        at: datetime,
    ) -> Rollout:
        return await self._change(
            session_id, failures.fall_back, rollout_id, failure, candidate_id, at=at
        )

    async def failures(self, session_id: str) -> Failures:
        return await self._database.read(failures.newest, session_id)

    async def post_trace(self, call: CallRecord) -> Trace:
        return await self._change_of(call.trace.session_id, posted.post_trace, call)

    async def take_turn(
        self, session_id: str, *, holder: str, at: datetime, until: datetime
    ) -> bool:
        return await self._database.write(turns.take, session_id, holder=holder, at=at, until=until)

    async def give_turn_back(self, session_id: str, *, holder: str) -> None:
        await self._database.write(turns.give_back, session_id, holder=holder)

    async def add_reward(self, reward: Reward, *, request_key: str | None = None) -> Attached:
        return await self._change_of(
            reward.session_id, rewards.add, reward, request_key=request_key
        )

    async def reward_blocks(self, session_id: str) -> tuple[RewardBlock, ...]:
        return await self._database.read(blocks.blocks_of, session_id)

    async def example_rewards(self, session_id: str, example_id: str) -> tuple[int, float]:
        return await self._database.read(rewards.of_example, session_id, example_id)

    async def give_up(
        self, session_id: str, *, after_rewards: int, pinned_before: datetime, at: datetime
    ) -> int:
        return await self._change(
            session_id,
            missing.give_up,
            after_rewards=after_rewards,
            pinned_before=pinned_before,
            at=at,
        )

    async def watermark(self, session_id: str) -> int:
        return await self._database.read(missing.watermark, session_id)

    async def example_traces(
        self, session_id: str, *, candidate_id: str | None = None, limit: int
    ) -> tuple[ExampleTrace, ...]:
        return await self._database.read(
            observations.example_traces, session_id, candidate_id=candidate_id, limit=limit
        )

    async def frames(self, session_id: str, *, limit: int) -> tuple[SensorFrame, ...]:
        return await self._database.read(observations.newest_frames, session_id, limit=limit)

    async def last_unapplied(self, session_id: str) -> str | None:
        return await self._database.read(observations.last_unapplied, session_id)

    async def seed_evals(
        self, wanted: SeedEvalFilter, *, limit: int, cursor: str | None = None
    ) -> Page[SeedEval]:
        return await self._database.read(
            observations.seed_evals, wanted, limit=limit, cursor=cursor
        )

    async def events(self, session_id: str, *, since: int, limit: int) -> tuple[Event, ...]:
        return await self._database.read(
            sessions.events_since, session_id, since=since, limit=limit
        )

    async def add_event(
        self,
        session_id: str,
        event_type: str,
        message: str,
        *,
        data: JsonObject,
        at: datetime,
    ) -> None:
        await self._change(session_id, sessions.add_event, event_type, message, data=data, at=at)

    async def duel(self, session_id: str) -> Duel | None:
        return await self._database.read(duels.newest, session_id)

    async def open_duel(self, duel: Duel) -> None:
        await self._change_of(duel.session_id, duels.begin, duel)

    async def duel_observations(
        self, session_id: str, number: int, *, impute: float | None = None
    ) -> tuple[DuelObservation, ...]:
        return await self._database.read(duels.observations, session_id, number, impute=impute)

    async def awaited_in_duel(self, session_id: str, number: int) -> int:
        return await self._database.read(duels.awaited, session_id, number)

    async def close_duel(
        self, session_id: str, number: int, state: DuelState, *, at: datetime, reason: str
    ) -> None:
        await self._change(session_id, duels.end, number, state, at=at, reason=reason)

    async def part(
        self, session: Session, part: Part, *, limit: int, cursor: str | None = None
    ) -> Page[JsonObject]:
        return await self._database.read(parts.read, session, part, limit=limit, cursor=cursor)

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
        await self._change(
            session_id,
            restoring.restore,
            part,
            rows,
            workspace=workspace,
            secret=secret,
            digest_key=digest_key,
            at=at,
        )

    async def keys(self) -> tuple[Key, ...]:
        return await self._database.read(keys.all_keys)

    async def add_key(self, key: Key) -> None:
        await self._database.write(keys.add_key, key)

    async def revoke_key(self, name: str, *, at: datetime) -> Key:
        return await self._database.write(keys.revoke_key, name, at=at)

    async def workspace_of(self, session_id: str) -> str:
        return await self._database.read(workspaces.workspace_of, session_id)

    async def rotate_secret(self, session_id: str, secret: str, *, at: datetime) -> Session:
        return await self._change(session_id, sessions.rotate_secret, secret, at=at)

    async def require_writable(self) -> None:
        await self._database.write(space.write_and_take_back)

    async def begin_deletion(self, session_id: str) -> None:
        await self._change(session_id, deletion.begin)

    async def begun_deletions(self) -> tuple[str, ...]:
        return await self._database.read(deletion.begun)

    async def thin(self, session_id: str, *, limit: int) -> int:
        return await self._change(session_id, deletion.thin, limit=limit)

    async def delete_session(self, session_id: str) -> None:
        await self._change(session_id, deletion.delete_all)

    async def session_ids(self) -> tuple[str, ...]:
        return await self._database.read(trimming.session_ids)

    async def remove_old(
        self, session_id: str, *, before: datetime, limit: int, at: datetime
    ) -> Removed:
        return await self._database.write_last(
            trimming.remove_old, session_id, before=before, limit=limit, at=at
        )

    async def begin_forgetting(self, order: ForgetOrder) -> None:
        await self._change_of(order.session_id, forgetting.begin, order)

    async def begun_forgettings(self) -> tuple[ForgetOrder, ...]:
        return await self._database.read(forgetting.begun)

    async def traceable(
        self, session_id: str, *, limit: int, cursor: str | None = None
    ) -> Page[TraceableReward]:
        return await self._database.read(
            forgetting.traceable, session_id, limit=limit, cursor=cursor
        )

    async def call_texts(
        self, session_id: str, rollout_ids: Collection[str], *, limit: int, cursor: str | None
    ) -> Page[CallTexts]:
        return await self._database.read(
            forgetting.call_texts, session_id, rollout_ids, limit=limit, cursor=cursor
        )

    async def empty_levers(
        self,
        session_id: str,
        versions: Collection[tuple[LeverName, int]],
        *,
        at: datetime,
        reason: str,
    ) -> Withdrawal:
        return await self._change(
            session_id, forgetting.empty_levers, versions, at=at, reason=reason
        )

    async def remove_rollouts(
        self, order: ForgetOrder, rollout_ids: Collection[str], *, at: datetime
    ) -> int:
        return await self._database.write_last(
            forgetting.remove_rollouts, order, rollout_ids, at=at
        )

    async def remove_calls(
        self,
        order: ForgetOrder,
        rollout_ids: Collection[str],
        emptied: Collection[tuple[LeverName, int]],
        *,
        limit: int,
        cursor: str | None,
    ) -> str | None:
        return await self._database.write_last(
            forgetting.remove_calls, order, rollout_ids, emptied, limit=limit, cursor=cursor
        )

    async def remove_events(
        self, session_id: str, rollout_ids: Collection[str], *, limit: int, cursor: str | None
    ) -> str | None:
        return await self._database.write_last(
            forgetting.remove_events, session_id, rollout_ids, limit=limit, cursor=cursor
        )

    async def end_forgetting(
        self, order: ForgetOrder, *, data: JsonObject, at: datetime
    ) -> ForgetOrder | None:
        return await self._change_of(order.session_id, forgetting.end, order, data=data, at=at)

    async def give_back_space(self) -> int:
        return await self._database.write_last(space.give_back)

    async def forget_texts(
        self, texts: Texts, *, before: datetime, limit: int, cursor: str | None = None
    ) -> Swept:
        return await self._database.write_last(
            retention.forget, texts, before=before, limit=limit, cursor=cursor
        )

    async def close(self) -> None:
        """Close all connections and let go of the database."""
        await self._database.close()

    async def _change(
        self,
        session_id: str,
        work: Work[Concatenate[str, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await self._change_of(session_id, work, session_id, *args, **kwargs)

    async def _change_of(
        self, session_id: str, work: Work[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Write, and tell those who watch; also after an error that may have come too late."""
        try:
            return await self._database.write(work, *args, **kwargs)
        finally:
            for changed in self._watchers:
                changed(session_id)
