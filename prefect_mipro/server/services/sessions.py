"""Sessions: creating, finding, steering and reporting them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from prefect_mipro.config import MiproConfig, override, require_size
from prefect_mipro.errors import (
    CandidateNotFound,
    Conflict,
    InputInvalid,
    NotFound,
    SessionEnded,
)
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.keys import DEFAULT_WORKSPACE
from prefect_mipro.models.levers import Demonstration, LeverName, ReviewState
from prefect_mipro.models.rollouts import ExampleTrace, SeedEval
from prefect_mipro.models.sessions import (
    CandidateReport,
    CreateSession,
    Event,
    RetiredCandidates,
    Session,
    SessionState,
    SessionStatus,
    SessionUrls,
)
from prefect_mipro.server.ids import Clock, NewId
from prefect_mipro.server.services.access import ProxyUrls
from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.creation import (
    admit_models,
    config_body,
    first_facts,
    human_levers,
    kept_config,
    session_id_of,
    strange_providers,
    unknown_fields,
)
from prefect_mipro.server.services.journal import Journal
from prefect_mipro.server.services.privacy import Redaction
from prefect_mipro.server.services.proposals import Proposals
from prefect_mipro.server.services.session_cache import PromptCache, SessionCache
from prefect_mipro.server.services.status import (
    Facts,
    candidate_reports,
    lineage,
    status_of,
    wire_candidate,
)
from prefect_mipro.server.store.records import Page, SeedEvalFilter, SessionFilter
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.upstream.registry import Upstreams

FRAMES_SHOWN = 50
# Candidates that are added at once ask for the same number: one of them gets it.
RACES = 20
KINDS = frozenset({"mipro_online", "mipro"})

log = logging.getLogger(__name__)


class Sessions:
    """All sessions of this backend."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        prompts: PromptCache,
        live: SessionCache,
        beliefs: Beliefs,
        proposals: Proposals,
        journal: Journal,
        redaction: Redaction,
        urls: ProxyUrls,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._prompts = prompts
        self._live = live
        self._beliefs = beliefs
        self._proposals = proposals
        self._journal = journal
        self._redaction = redaction
        self._urls = urls
        self._clock = clock
        self._new_id = new_id

    async def create(
        self, request: CreateSession, *, workspace: str = DEFAULT_WORKSPACE
    ) -> tuple[SessionStatus, bool]:
        """Create the session, or find it by its id. The flag says whether it is new.

        Raises Conflict where another workspace has the id, and SessionEnded where the session with
        the id was cancelled.
        """
        if request.kind not in KINDS:
            raise InputInvalid(f"kind is {request.kind!r}; this backend knows 'mipro_online'")
        body = override(config_body(request), request.overrides)
        config = MiproConfig.parse(body)
        require_size("the metadata", request.metadata)
        body["prompt_learning"].pop("task_app_api_key", None)  # never needed, so never stored
        await admit_models(config, self._upstreams)
        session_id = session_id_of(request, config)
        session, levers, baseline = first_facts(
            session_id,
            request,
            config,
            body,
            workspace=workspace,
            now=self._clock(),
            baseline_id=self._new_id("baseline"),
        )
        stored, created = await self._store.create_session(session, levers, baseline)
        if stored.state is SessionState.CANCELLED:
            raise SessionEnded(
                f"session {session_id!r} was cancelled, which is final: it does not run again; "
                "choose another session_id, or delete the session first, which frees its id"
            )
        status = await self.status(session_id)
        kept = [] if created else [*_ended(stored), *kept_config(stored, session)]
        if kept:
            log.warning("session_kept", extra={"session_id": session_id, "reasons": kept})
        kept += unknown_fields(request)
        return status.model_copy(update={"warnings": [*kept, *status.warnings]}), created

    async def status(self, session_id: str) -> SessionStatus:
        """The status object. Raises SessionNotFound."""
        session = await self._store.session(session_id)
        facts = await self._facts(session)
        return status_of(facts, self._urls.of(facts.session), self._warnings(facts.config))

    async def urls(self, session_id: str) -> SessionUrls:
        """The URLs of the session's proxy. Raises SessionNotFound."""
        return self._urls.of(await self._store.session(session_id))

    async def change_state(self, session_id: str, state: SessionState) -> SessionStatus:
        """Pause, resume or cancel. Raises SessionEnded once the session has ended."""
        reason = "cancelled by the caller" if state is SessionState.CANCELLED else None
        await self._store.set_state(session_id, state, at=self._clock(), stop_reason=reason)
        return await self.status(session_id)

    async def promote(self, session_id: str, candidate_id: str, *, reason: str) -> SessionStatus:
        """Make any candidate the champion, an earlier or a retired one too: the way back.

        What a duel would have had to prove is taken on the caller's word; a running one is given
        up. It works in every state, because the champion is served in every state.
        """
        await self._store.set_champion(session_id, candidate_id, at=self._clock(), reason=reason)
        self._beliefs.forget(session_id)
        return await self.status(session_id)

    async def retire(self, candidate_id: str, *, reason: str) -> RetiredCandidates:
        """Take a candidate out of play, and out of the rollouts that are pinned to it.

        Raises Conflict for the baseline, and CandidateNotFound.
        """
        candidate = await self._store.candidate(candidate_id)
        return await self._withdraw(candidate.session_id, [candidate_id], reason=reason)

    async def retire_lever(
        self, session_id: str, lever: LeverName, version: int, *, reason: str
    ) -> RetiredCandidates:
        """Retire all candidates that hold a lever version; no new one is made with it.

        Raises Conflict for a version that the baseline holds, and NotFound.
        """
        levers = await self._store.levers(session_id)
        found = next((v for v in levers if (v.lever, v.version) == (lever, version)), None)
        if found is None:
            raise NotFound(f"session {session_id!r} has no version {version} of its {lever}")
        if found.review_is(ReviewState.WAITING):
            raise Conflict(
                f"version {version} of the {lever} waits for a review and is in no candidate; "
                "decline it instead"
            )
        holding = [
            candidate.candidate_id
            for candidate in await self._store.candidates(session_id)
            if candidate.holds(found)
        ]
        return await self._withdraw(session_id, holding, reason=reason)

    async def _withdraw(
        self, session_id: str, candidate_ids: Sequence[str], *, reason: str
    ) -> RetiredCandidates:
        before = await self._store.session(session_id)
        withdrawal = await self._store.withdraw(
            session_id, candidate_ids, at=self._clock(), reason=reason
        )
        self._beliefs.forget(session_id)
        self._proposals.consider(session_id)
        return RetiredCandidates(
            session_id=session_id,
            retired_candidates=withdrawal.candidate_ids,
            champion_candidate_id=withdrawal.champion_id,
            champion_replaced=withdrawal.champion_id != before.champion_id,
        )

    async def begin_epoch(self, session_id: str, *, reason: str) -> SessionStatus:
        """Learn anew, because the world has changed: the model, its version, the traffic.

        Candidates and champion stay; what they earned before no longer counts for the belief.
        Raises SessionEnded once the session has ended.
        """
        session = await self._store.session(session_id)
        if session.state.final:
            raise SessionEnded(
                f"session {session_id} is {session.state} and learns no more; "
                "create a new session to begin anew"
            )
        await self._store.begin_epoch(session_id, at=self._clock(), reason=reason)
        self._beliefs.forget(session_id)
        return await self.status(session_id)

    async def find(
        self, wanted: SessionFilter, *, limit: int, cursor: str | None
    ) -> Page[JsonObject]:
        """Sessions, newest first, each with its id, state, name and times."""
        page = await self._store.sessions(wanted, limit=limit, cursor=cursor)
        return Page(tuple(_listed(session) for session in page.items), page.next_cursor)

    def policy_model(self, session: Session) -> str:
        """What the session's model is called, which may be its own id."""
        return self._prompts.config(session).policy.model or session.session_id

    async def candidates(
        self,
        session_id: str,
        *,
        limit: int,
        cursor: str | None = None,
        status: str | None = None,
        sort: str | None = None,
    ) -> Page[JsonObject]:
        """Candidates as the wire has them: by number, or by `objective` when asked."""
        facts = await self._facts(await self._store.session(session_id))
        items = [_resource(facts, report) for report in candidate_reports(facts).values()]
        if status:
            items = [item for item in items if item["status"] == status]
        _sort(items, sort)
        start = _offset(cursor)
        end = start + limit
        return Page(tuple(items[start:end]), str(end) if end < len(items) else None)

    async def candidate(self, candidate_id: str) -> JsonObject:
        """One candidate as the wire has it. Raises CandidateNotFound."""
        candidate = await self._store.candidate(candidate_id)
        facts = await self._facts(await self._store.session(candidate.session_id))
        return _resource(facts, candidate_reports(facts)[candidate_id])

    async def add_candidate(
        self,
        session_id: str,
        *,
        instruction: str,
        demonstrations: Sequence[Demonstration] | None = None,
        label: str | None = None,
    ) -> JsonObject:
        """Add a person's prompt as a candidate. Without demonstrations it takes the champion's.

        Raises InputInvalid for a prompt that could not be served.
        """
        for _ in range(RACES):
            with suppress(Conflict):
                return await self._add_candidate(session_id, instruction, demonstrations, label)
        return await self._add_candidate(session_id, instruction, demonstrations, label)

    async def _add_candidate(
        self,
        session_id: str,
        instruction: str,
        demonstrations: Sequence[Demonstration] | None,
        label: str | None,
    ) -> JsonObject:
        session = await self._store.session(session_id)
        candidates = await self._store.candidates(session_id)
        levers = await self._store.levers(session_id)
        champion = next(c for c in candidates if c.candidate_id == session.champion_id)
        new = human_levers(
            levers,
            champion,
            instruction=instruction,
            demonstrations=demonstrations,
            reason=label or "added by hand",
            at=self._clock(),
        )
        numbers = {version.lever: version.version for version in new}
        candidate = Candidate(
            candidate_id=self._new_id("cand"),
            session_id=session_id,
            number=candidates[-1].number + 1,
            instruction_version=numbers[LeverName.INSTRUCTION],
            demonstrations_version=numbers.get(
                LeverName.DEMONSTRATIONS, champion.demonstrations_version
            ),
            parent_id=champion.candidate_id,
            label=label,
            created_at=self._clock(),
        )
        await self._store.add_candidates(session_id, new, [candidate])
        self._beliefs.forget(session_id)
        return await self.candidate(candidate.candidate_id)

    async def seed_evals(
        self,
        wanted: SeedEvalFilter,
        *,
        split: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> Page[SeedEval]:
        """Rewarded rollouts that named their seed, with the split the config puts it in."""
        if wanted.candidate_id is not None:
            candidate = await self._store.candidate(wanted.candidate_id)
            session_id = candidate.session_id
            if wanted.session_id not in (None, session_id):
                raise CandidateNotFound.of(wanted.candidate_id)
        else:
            session_id = wanted.session_id or ""
        config = self._prompts.config(await self._store.session(session_id))
        if split is not None:
            seeds = _seeds_of(config, split)
            wanted = SeedEvalFilter(
                session_id=wanted.session_id,
                candidate_id=wanted.candidate_id,
                seeds=[s for s in seeds if wanted.seeds is None or s in wanted.seeds],
                success=wanted.success,
            )
        page = await self._store.seed_evals(wanted, limit=limit, cursor=cursor)
        items = (
            item.model_copy(update={"split": config.mipro.split_of(str(item.seed))})
            for item in page.items
        )
        return Page(tuple(items), page.next_cursor)

    async def examples(
        self, session_id: str, candidate_id: str, *, limit: int
    ) -> tuple[ExampleTrace, ...]:
        """A candidate's answers, newest first; empty where texts are not kept."""
        session = await self._store.session(session_id)
        if (await self._store.candidate(candidate_id)).session_id != session.session_id:
            raise CandidateNotFound.of(candidate_id)
        await self._journal.flush()
        return await self._store.example_traces(session_id, candidate_id=candidate_id, limit=limit)

    async def events(self, session_id: str, *, since: int, limit: int) -> tuple[Event, ...]:
        """The session's event feed after `since`."""
        await self._store.session(session_id)
        return await self._store.events(session_id, since=since, limit=limit)

    async def _facts(self, session: Session) -> Facts:
        session_id = session.session_id
        config = self._prompts.config(session)
        await self._journal.flush()
        duel = await self._store.duel(session_id)
        snapshot = await self._beliefs.fresh(session)
        totals = await self._store.totals(session_id)
        return Facts(
            session=session,
            config=config,
            snapshot=snapshot,
            totals=totals,
            watermark=await self._store.watermark(session_id),
            levers=await self._store.levers(session_id),
            frames=await self._store.frames(session_id, limit=FRAMES_SHOWN),
            duel=duel,
            observations=(
                await self._store.duel_observations(
                    session_id, duel.number, impute=config.mipro.imputed_reward
                )
                if duel
                else ()
            ),
            last_unapplied=await self._store.last_unapplied(session_id),
            waiting_for=await self._proposals.waiting_for(session, snapshot.candidates),
        )

    def _warnings(self, config: MiproConfig) -> list[str]:
        no_prompt = (
            []
            if config.initial_prompt
            else [
                "the config has no initial_prompt, so only demonstrations are optimized; "
                "add [prompt_learning.initial_prompt] to let the instruction be improved too"
            ]
        )
        strange = strange_providers(config, self._upstreams)
        return [*config.warnings, *strange, *self._redaction.warnings(config), *no_prompt]


def _ended(session: Session) -> list[str]:
    """The warning that a session which is created again has ended."""
    if not session.state.final:
        return []
    return [
        f"session {session.session_id} has {session.state} "
        f"({session.stop_reason or 'no reason given'}): it serves its champion and learns nothing "
        "more. Choose another session_id to learn"
    ]


def _resource(facts: Facts, report: CandidateReport) -> JsonObject:
    """A candidate with its lineage, as the candidate calls answer it."""
    origins = lineage(facts, report.candidate_id).items()
    told = {str(lever): origin.model_dump(mode="json") for lever, origin in origins}
    return {**wire_candidate(facts, report), "lineage": told}


def _listed(session: Session) -> JsonObject:
    return {
        "session_id": session.session_id,
        "system": {"id": session.session_id, "name": session.system_name},
        "kind": session.kind,
        "state": session.state,
        "status": session.state,
        "agent_id": session.agent_id,
        "version": session.version,
        "rollout_count": session.rollouts,
        "reward_count": session.rewards,
        "champion_candidate_id": session.champion_id,
        "stop_reason": session.stop_reason,
        "created_at": session.created_at.isoformat(),
        "updated_at": session.updated_at.isoformat(),
    }


def _seeds_of(config: MiproConfig, split: str) -> Sequence[int]:
    mipro = config.mipro
    every = {*mipro.bootstrap_train_seeds, *mipro.online_pool, *mipro.val_seeds, *mipro.test_pool}
    return sorted(seed for seed in every if mipro.split_of(str(seed)) == split)


def _sort(items: list[JsonObject], sort: str | None) -> None:
    """Sort in place by `field:direction,…`, the last field first so that the first one rules."""
    known = {"objective": "score", "score": "score", "created_at": "lever_version"}
    for part in reversed((sort or "").split(",")):
        if not part.strip():
            continue
        name, _, direction = part.strip().partition(":")
        if name not in known or direction not in ("", "asc", "desc"):
            raise InputInvalid(
                f"cannot sort by {part.strip()!r}; use objective or created_at with :asc or :desc"
            )
        items.sort(
            key=lambda item: (item[known[name]] is not None, item[known[name]] or 0),
            reverse=direction == "desc",
        )


def _offset(cursor: str | None) -> int:
    if not cursor:
        return 0
    if not cursor.isdecimal():
        raise InputInvalid(f"the cursor {cursor[:80]!r} is not one of this list's")
    return int(cursor)
